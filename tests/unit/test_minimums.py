from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import minimums as resolver
import pytest
from click.testing import CliRunner

from flux_trt.exporter.cli import main
from flux_trt.runtime import minimums

Set = Callable[..., None]
OURS = [
    "click>=8.1",
    'onnxruntime>=1.24.1; extra == "cpu"',
    'onnx-ir<1.2,>=0.1.16; extra == "export"',
    'onnxscript>=0.6.0,<0.8; extra == "export"',
]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Say which versions are installed."""

    def set_(**versions: str) -> None:
        monkeypatch.setattr(minimums, "requires", lambda _: OURS)
        monkeypatch.setattr(minimums, "version", lambda name: versions[name.replace("-", "_")])

    return set_


@pytest.mark.parametrize("old", ["1.22.1", "1.24", "1.24.0", "0.99.9", "1.9.0", "1.23.2.dev20260101"])
def test_what_is_too_old_is_named(there: Set, old: str) -> None:
    there(onnxruntime=old)
    said = f"needs onnxruntime 1.24.1 or newer, this is {old}; pip install 'onnxruntime>=1.24.1'"
    assert minimums.misfit("onnxruntime", "onnxruntime-gpu") == said


@pytest.mark.parametrize("good", ["1.24.1", "1.24.1.post1", "1.32.0", "2.0", "1.100"])
def test_what_is_new_enough_is_not(there: Set, good: str) -> None:
    there(onnxruntime=good, click="7.0")  # which nobody has asked for
    assert minimums.misfit("onnxruntime") is None


@pytest.mark.parametrize("new", ["0.8.0", "0.8", "1.0"])
def test_what_is_too_new_is_named(there: Set, new: str) -> None:
    there(onnxscript=new)
    assert (minimums.misfit("onnxscript") or "").startswith(
        f"needs onnxscript older than 0.8, this is {new};"
    )


def test_this_environment_fits() -> None:
    every = [line.partition("=")[0] for line in resolver.minimums("export") + resolver.minimums("cpu")]
    assert minimums.misfit(*every) is None


def test_an_old_onnxruntime_is_one_line_where_it_is_needed() -> None:
    code = (
        "from flux_trt.runtime import minimums; minimums.version = lambda name: '1.22.1'\n"
        "from flux_trt.runtime.backends.connect import connect\n"
        "from flux_trt.runtime.errors import BackendError\n"
        "try: connect('onnxruntime', 'cpu')\n"
        "except BackendError as fault: print(fault)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(r"needs onnxruntime 1\.24\.1 or newer, this is 1\.22\.1; ", done.stdout)


@pytest.mark.parametrize(
    "command", [["build", "x", "-o", "y"], ["calibrate", "x", "-o", "y"], ["verify", "x"]]
)
def test_the_exporter_names_an_old_library(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimums, "version", lambda name: "0.5.6" if name == "onnxscript" else "99")
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.output.startswith("Error: needs onnxscript 0.6.0 or newer, this is 0.5.6; ")


@pytest.mark.parametrize(
    "command",
    [["build", "x", "-o", "y"], ["engines", "x", "--backend", "tensorrt-rtx"], ["verify", "x"]],
)
def test_the_exporter_says_that_it_runs_on_linux(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.output.startswith("Error: this command runs on Linux only; ")


def test_minimums_come_from_setup_cfg() -> None:
    found = resolver.minimums("export", keep=["torch"])
    assert "click==8.1" in found
    assert "onnx-ir==0.1.16" in found
    assert "torch==2.13.0" in found
    assert all("==" in line for line in found)
