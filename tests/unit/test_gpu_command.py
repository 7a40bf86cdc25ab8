"""`make gpu`: what it says without a GPU, that it keeps its time, and what it leaves to send back."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gpu
import gpu_steps
import pytest
from on_gpu import child, machine, told
from on_gpu.parts import PARTS, Part

from flux_trt.runtime.bundle.flavour import FLAVOURS

ROOT = Path(__file__).parents[2]
CARD = machine.Card("NVIDIA GeForce RTX 4090", "8.9", "580.65", 24.0, "450.00")


def python(code):
    return (sys.executable, "-c", code)


def command(*words, path=""):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *words],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_it_says_so_and_what_it_would_do():
    found = command()
    assert found.returncode == 1
    assert "No NVIDIA GPU: nvidia-smi is not there" in found.stdout
    assert "stops after 30 minutes" in found.stdout
    for part in PARTS:
        assert f"  {part.name} (at most {part.seconds} s)" in found.stdout
    assert not found.stderr
    assert command("--plan").returncode == 0


def smi(folder, text, code=0):
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [("No devices were found", 6, "found no GPU"), ("what, is, this", 0, "not understood")],
)
def test_a_driver_without_a_card_is_no_gpu(tmp_path, monkeypatch, text, code, why):
    smi(tmp_path, text, code)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert why in machine.look()


def test_a_card_is_read(tmp_path, monkeypatch):
    smi(tmp_path, "NVIDIA GeForce RTX 4090, 8.9, 580.65, 24564, 450.00")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine.look()
    assert (found.slug, found.flavour, found.memory_gb) == ("nvidia-geforce-rtx-4090", "tensorrt-rtx", 24.0)


def test_the_flavours_are_those_of_the_runtime():
    rtx = FLAVOURS["tensorrt-rtx"]
    assert tuple(sm for sm in rtx.capabilities if float(sm) >= rtx.float32) == machine.RTX
    assert machine.Card("H100", "9.0", "", 80, "").flavour == "tensorrt"


def runs(pid):
    """Whether a process is there and more than what is left of a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_tells_what_passed_and_leaves_nothing_running(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "INSTALLS", ())
    pid = tmp_path / "pid"
    sleeper = (
        "import pathlib, subprocess, sys; "
        "kid = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"pathlib.Path({str(pid)!r}).write_text(str(kid.pid)); kid.wait()"
    )
    parts = [
        Part("good", ("a",), python("print('fine')"), 60, least=0),
        Part("bad", (), python(f"import sys; print({str(ROOT / 'x')!r}); sys.exit('broken')"), 60, least=0),
        Part("slow", (), python(sleeper), 8, least=0),
        Part("large", (), python("print(1)"), 60, least=10**6),
    ]
    started = time.monotonic()
    assert gpu.carry_out(CARD, parts, 600, tmp_path / "results") == 1
    assert time.monotonic() - started < 60
    checks = json.loads((tmp_path / "results" / "checks.json").read_text())
    assert [part["state"] for part in checks["parts"]] == ["passed", "failed", "stopped", "not run"]
    assert "broken" in checks["parts"][1]["output"]
    assert "s were left" in checks["parts"][3]["why"]
    until = time.monotonic() + 30
    while runs(int(pid.read_text())):  # whom nobody waits for is there until init has seen its end
        assert time.monotonic() < until
        time.sleep(0.1)
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "**1 passed, 1 FAILED, 1 STOPPED, 1 not run**" in text
    assert str(ROOT) not in text + json.dumps(checks)
    said = capsys.readouterr().out
    assert "FAILED   bad" in said
    archive = re.search(r"To send back: (\S+)", said)[1]
    with zipfile.ZipFile(ROOT / archive) as file:
        assert {"checks.json", "summary.md"} <= set(file.namelist())


def test_without_packages_nothing_else_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu, "INSTALLS", (Part("environment", (), python("raise SystemExit(1)"), 60, least=0),)
    )
    assert gpu.carry_out(CARD, [Part("good", (), python(""), 60, least=0)], 600, tmp_path) == 1
    checks = json.loads((tmp_path / "checks.json").read_text())
    assert checks["parts"][1]["why"] == "the packages could not be installed"


def test_tests_are_told_one_by_one(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'no'\n"
        "@pytest.mark.skip(reason='needs X')\ndef test_c(): pass\n"
    )
    words = ("{python}", "-m", "pytest", "-q", f"--rootdir={tmp_path}", "-c", os.devnull, str(file))
    part = Part("some", (), (*words, "--junitxml={work}/junit.xml"), 120, tests=True)
    found = child.run(part, {"python": sys.executable, "work": str(tmp_path)}, 120, ROOT)
    assert found["state"] == "failed"
    assert [(each["name"], each["state"]) for each in found["tests"]] == [
        ("test_a", "passed"),
        ("test_b", "failed"),
        ("test_c", "skipped"),
    ]
    assert found["tests"][2]["why"] == "needs X"
    assert "1 failed, 1 passed, 1 skipped" in told.line(found)


def test_the_page_and_the_parts_say_the_same():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", page, re.M)[1:]
    rows = [(what, where.split("; ")) for what, where in rows if "---" not in what]
    table = {(what, name) for what, names in rows for name in names if name in {part.name for part in PARTS}}
    assert all(
        set(names) <= {part.name for part in PARTS} for what, names in rows if what.startswith("that ")
    )
    said = set()
    for part in PARTS:
        for each in part.shows:
            (what,) = {what for what, _ in table if what.startswith(each)}
            said.add((what, part.name))
    assert said == table


def test_the_parts_commands_are_there():
    for part in PARTS:
        (script,) = [
            word for word in part.command if word.endswith(".py") and word.startswith(("tests", "benchm"))
        ]
        assert (ROOT / script).is_file()
        if script == "benchmarks/gpu_steps.py":
            assert part.command[2] in gpu_steps.MODELS
    assert sum(part.least for part in PARTS) < 60 * 30


def row(name, depth, ms):
    return {"name": name, "depth": depth, "ms_per_step": ms}


def test_all_blocks_are_counted_by_their_differences():
    rows = [row("a", (1, 1), 10.0), row("a", (1, 2), 12.0), row("a", (2, 1), 13.0), row("b", (1, 1), 1.0)]
    assert gpu_steps.by_blocks(rows) == {"a": 10 + 18 * 3 + 37 * 2}


def test_a_way_that_cannot_run_says_why(tmp_path):
    """As on a machine without a GPU: each row has its reason, and the file is written."""
    options = ["ladder", "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_steps.py", *options, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "steps-ladder.json").read_text())
    assert len(found["rows"]) == 2 * len(gpu_steps.ways("tensorrt-rtx"))
    assert {each["not_run_here"] for each in found["rows"]} == {"no time was left"}
    assert "| flux-nano: diffusers, bf16 | - |  | no time was left |" in "\n".join(told.times(found, "x"))


@pytest.mark.parametrize("backend", ["diffusers", "onnxruntime"])
def test_a_way_runs(tmp_path, backend):
    """On the CPU, where the two can."""
    way = gpu_steps.Way("a way", "fp32", backend)
    found = gpu_steps.one(way, gpu_steps.Model("flux-nano"), tmp_path, "cpu")
    assert found["ms_per_step"] > 0
