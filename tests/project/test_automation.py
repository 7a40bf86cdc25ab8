"""What runs by itself: the workflow calls what CONTRIBUTING.md says, the hooks have the pinned versions."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LARGEST = 500  # kB, in the hook and in CONTRIBUTING.md


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def hooks():
    return {
        hook["id"]: {"rev": repo["rev"], **hook}
        for repo in read(".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    }


def committed():
    """Files that are ours; what is built, installed or ignored lies in folders that are left out."""
    left_out = {".git", ".venv", ".links", "build", "dist", "out", "runs", "__pycache__"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        aside = left_out & set(parts) or any(part.endswith(("_cache", ".egg-info")) for part in parts)
        if not aside and path.is_file():
            yield path


def test_the_workflow_calls_what_every_change_must_pass():
    workflow = read(".github/workflows/ci.yml")
    events = workflow.get("on", workflow.get(True))  # YAML 1.1 reads the word as a truth value
    assert {"push", "pull_request", "schedule"} <= set(events)
    assert workflow["permissions"] == {"contents": "read"}
    check, slow = workflow["jobs"]["check"], workflow["jobs"]["slow"]
    assert [step["run"] for step in check["steps"] if "run" in step] == [".ci/run"]
    assert [step["run"] for step in slow["steps"] if "run" in step] == ["make test-slow"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    oldest = re.search(r"python_requires = >=(\S+)", (ROOT / "setup.cfg").read_text(encoding="utf-8"))[1]
    for job in (check, slow):
        assert "permissions" not in job
        assert job["timeout-minutes"]
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in used)
        (python,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
        assert python["python-version"] == oldest
        assert all((ROOT / name).is_file() for name in python["cache-dependency-path"].split())


def test_the_hooks_are_the_pinned_ruff():
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    found = hooks()
    assert {found[name]["rev"] for name in ("ruff-check", "ruff-format")} == {f"v{pinned}"}
    assert {"trailing-whitespace", "end-of-file-fixer", "check-yaml", "check-json", "check-toml"} <= set(
        found
    )


def test_no_committed_file_is_larger_than_the_hook_allows():
    hook = hooks()["check-added-large-files"]
    assert hook["args"] == [f"--maxkb={LARGEST}"]
    assert f"above {LARGEST} kB" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    large = [
        name
        for path in committed()
        if path.stat().st_size > LARGEST * 1024
        and not re.search(hook["exclude"], name := path.relative_to(ROOT).as_posix())
    ]
    assert large == []


def test_text_ends_as_the_hook_wants():
    left = hooks()["end-of-file-fixer"]["exclude"]
    wrong = [
        name
        for path in committed()
        if path.suffix in {".py", ".md", ".json", ".yml", ".yaml", ".toml", ".cfg", ".txt"}
        and not re.search(left, name := path.relative_to(ROOT).as_posix())
        and path.stat().st_size
        and (not (text := path.read_bytes()).endswith(b"\n") or text.endswith(b"\n\n"))
    ]
    assert wrong == []
