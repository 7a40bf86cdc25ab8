"""A release: one version everywhere, a wheel and an sdist that are whole, forms that ask what is needed."""

import configparser
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import click
import pytest
import yaml
from pages import group

ROOT = Path(__file__).parents[2]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"


@pytest.fixture(scope="module")
def version():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]["version"]


def test_the_version_is_the_same_everywhere(version):
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, when = re.search(r"^## \[([\d.]+)\] - (\S+)$", changes, re.M).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert first == version == str(citation["version"])
    assert str(citation["date-released"]) == when
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)


def test_the_forms_ask_for_versions_and_the_bundle():
    asked = {}
    for path in FORMS.glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= set(form)
        ids = [each["id"] for each in form["body"] if each["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        labels = {each["id"]: each["attributes"]["label"] for each in form["body"] if "id" in each}
        asked[path.stem] = {labels[each["id"]] for each in form["body"] if each.get("validations")}
    assert {"flux-run --version --verbose", "flux-export inspect BUNDLE --json"} <= asked["fault"]
    for words in (["flux-run", "--version", "--verbose"], ["flux-export", "inspect", "BUNDLE", "--json"]):
        command = group(words[0])
        if isinstance(command, click.Group) and words[1] in command.commands:
            command = command.commands[words[1]]
        known = {option for each in command.params for option in each.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of what is here, as `make dist` builds them, in this environment."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError) as fault:
        pytest.skip(f"needs git and its checkout: {fault}")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("examples/", "docs/gallery", "tests/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return out


def test_twine_finds_nothing_wrong(built, version):
    files = sorted(built.iterdir())
    assert [each.name for each in files] == [
        f"flux_trt-{version}-py3-none-any.whl",
        f"flux_trt-{version}.tar.gz",
    ]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdist_builds_without_the_repository(built):
    """`build` makes the wheel from the sdist; what both need, and the licence, is in it."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "runtime/cli.py"} <= names
    assert any(name.startswith("serving/web/") for name in names)
    assert any(name.startswith("plugins/qk_norm_rope/kernels/") for name in names)
