"""Signals to real processes: tidy, told, and ended by the signal; and every command line as a module."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUPS = ["runtime", "exporter", "bench"]
MODULES = [*GROUPS, "serving"]
"""flux-serve hears signals in its own way: test_serving_app."""
STEPS = 4000
SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"]


def started(*words, **more):
    command = [sys.executable, "-m", "flux_trt.runtime.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.fixture(autouse=True)
def not_ignored():
    """What starts the tests in the background may ignore signals, and children would inherit that."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for each in before:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_painted_is_told_and_the_signal_is_the_end(tiny, tmp_path, name, as_json):
    out = tmp_path / "a.png"
    words = ["generate", tiny, "a", "-n", 60, "--steps", STEPS, "--device", "cpu", "-o", out]
    with started(*words, *(["--json"] if as_json else [])) as process:
        wait_for(lambda: (tmp_path / "a-1.png").exists())
        process.send_signal(getattr(signal, name))
        said, told = process.communicate(timeout=60)
    assert process.returncode == -getattr(signal, name)
    pictures = sorted(tmp_path.iterdir(), key=lambda path: int(re.findall(r"\d+", path.name)[-1]))
    assert 2 <= len(pictures) < 60
    line = f"stopped by {name}: {len(pictures)} of 60 pictures are painted"
    assert told == f"{line}\n"
    if as_json:
        report = json.loads(said)
        assert [each["path"] for each in report["pictures"]] == [str(each) for each in pictures]
        assert (report["asked"], report["stopped"], report["device"]) == (60, line, "cpu")
    else:
        assert said.split() == [str(each) for each in pictures]


@pytest.mark.parametrize("name", SIGNALS)
def test_jobs_go_on_after_a_signal(tiny, tmp_path, name):
    path, results = tmp_path / "j.jsonl", tmp_path / "j.results.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "seed": k, "steps": STEPS}) + "\n" for k in range(6)))
    with started("generate", tiny, "--jobs", path, "--device", "cpu") as process:
        wait_for(lambda: results.exists() and results.read_bytes().count(b"\n") >= 2)
        process.send_signal(getattr(signal, name))
        said, told = process.communicate(timeout=60)
    assert process.returncode == -getattr(signal, name)
    done = results.read_bytes().count(b"\n")
    assert said == f"{done} painted, 0 kept, 0 failed; results in {results}\n"
    assert (
        told == f"stopped by {name}: {done} painted, 0 kept, 0 failed; the same command goes on from there\n"
    )
    with started("generate", tiny, "--jobs", path, "--device", "cpu") as process:
        said, _ = process.communicate(timeout=120)
    assert said.startswith(f"{6 - done} painted, {done} kept, 0 failed")


def test_a_loop_of_the_shell_stops(tiny, tmp_path):
    """Ctrl-C goes to the whole group of a terminal's foreground; bash goes on unless its child died of it."""
    script = (
        f"for i in 1 2 3; do {sys.executable} -m flux_trt.runtime.cli generate {tiny} a --steps {STEPS * 5} "
        f"--device cpu -o {tmp_path}/$i.png; echo after $i: $?; done"
    )
    shell = subprocess.Popen(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with shell:
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        wait_for(lambda: children.read_text().split())
        child = int(children.read_text().split()[0])
        caught = lambda: int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{child}/status").read_text())[1], 16)  # noqa: E731
        wait_for(lambda: caught() & (1 << (signal.SIGHUP - 1)))
        os.killpg(shell.pid, signal.SIGINT)
        said, told = shell.communicate(timeout=60)
    assert (said, shell.returncode) == ("", -signal.SIGINT)
    assert "stopped by SIGINT" in told
    assert list(tmp_path.iterdir()) == []


def test_the_shell_sees_130(tiny, tmp_path):
    script = (
        f"timeout --foreground -s INT 2 {sys.executable} -m flux_trt.runtime.cli generate {tiny} a "
        f"--steps 10000000 --device cpu -o {tmp_path}/a.png; echo $?"
    )
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "124\n", "timeout's own"
    inner = script.replace("timeout", "timeout --preserve-status")
    found = subprocess.run(["bash", "-c", inner], capture_output=True, text=True, check=True)
    assert found.stdout == "130\n"


def test_nohup_stays_in_force(tiny, tmp_path):
    out = tmp_path / "a.png"

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = ["generate", tiny, "a", "--steps", STEPS, "--device", "cpu", "-o", out]
    with started(*words, preexec_fn=ignore) as process:
        time.sleep(1)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert (process.returncode, out.exists()) == (0, True)


@pytest.mark.parametrize("module", GROUPS)
def test_every_command_line_ends_by_the_signal(module, tmp_path):
    """All groups share what hears signals; a command of each that waits is stopped."""
    code = (
        f"import sys, time\nfrom flux_trt.{module}.cli import main\n"
        "@main.command()\ndef wait():\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "main(['wait'])"
    )
    for name in SIGNALS:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(getattr(signal, name))
            _, told = process.communicate(timeout=30)
        assert (process.returncode, told) == (-getattr(signal, name), f"stopped by {name}\n")


def test_all_command_lines_are_known():
    found = [*ROOT.glob("*/cli.py"), *ROOT.glob("*/*/cli.py")]
    assert sorted(path.parent.name for path in found) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_python_dash_m_runs_it(module):
    command = [sys.executable, "-m", f"flux_trt.{module}.cli", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.match(r"flux-\w+, version \d", found.stdout)
