from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flux_trt.exporter.build import build
from flux_trt.exporter.cli import main
from flux_trt.exporter.quantise.calibration import Settings
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.enough import warning
from flux_trt.exporter.verify import verify
from flux_trt.exporter.verify.verify import Row

USUAL = {"prompts": ["a"] * 31, "width": 512, "height": 512, "steps": 12, "guidance": 3.5, "seed": 0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"prompts": ["a"] * 8, "width": 256, "height": 256, "steps": 4}, None),  # what docs/fp8.md proposes
        ({"prompts": ["a"] * 4, "width": 1024, "height": 64, "steps": 3}, None),
        ({"prompts": ["a"] * 3}, "small: 3 prompts (usual: 31); "),
        ({"steps": 2}, "small: 2 steps (usual: 12); "),
        ({"width": 240}, "None"),
        ({"width": 240, "height": 256}, "small: 240x256 pixels (usual: 512x512); "),
        (
            {"prompts": ["a"], "width": 16, "height": 16, "steps": 1},
            "small: 1 prompt (usual: 31), 1 step (usual: 12), 16x16 pixels (usual: 512x512); ",
        ),
    ],
)
def test_what_is_far_below_the_usual_is_named(changed: dict, said: str | None) -> None:
    found = warning(Settings(**{**USUAL, **changed}), Settings(**USUAL))
    assert (said or "None") in str(found)


def test_calibrate_and_build_warn(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, file, prompts = str(checkpoint("dev-like")), tmp_path / "c.json", tmp_path / "p.txt"
    prompts.write_text("a\n")
    command = ["calibrate", source, "-o", str(file), "--prompts", str(prompts)]
    done = CliRunner().invoke(main, [*command, "--steps", "1", "--size", "16x16"])
    assert done.exit_code == 0, done.output
    assert "warning: the calibration is small: 1 prompt (usual: 31), 1 step (usual: 12), 16x16" in done.output
    told: list[str] = []
    fp8 = Fp8(base="fp32", calibration=file)
    build(source, tmp_path / "b", precision="fp8", fp8=fp8, stages=["t5"], tell=told.append)
    (line,) = [line for line in told if line.startswith("warning")]
    assert "1 step (usual: 12)" in line
    assert str(file) in line


def test_enough_warns_of_nothing(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\nb\nc\nd\n")
    command = ["calibrate", str(checkpoint("dev-like")), "-o", str(tmp_path / "c.json")]
    done = CliRunner().invoke(
        main, [*command, "--prompts", str(prompts), "--steps", "3", "--size", "256x256"]
    )
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output


@pytest.mark.parametrize(("precision", "named"), [("fp8", True), ("fp32", False)])
def test_a_verification_names_the_calibration(
    precision: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("denoiser", "velocity", precision, "onnxruntime cpu", "diffusers", 0.43, 0.3)
    monkeypatch.setattr(verify, "verify", lambda *_, **__: iter([row]))
    done = CliRunner().invoke(main, ["verify", "x"])
    assert done.exit_code == 1
    assert "denoiser velocity is off by 4.3e-01; " in done.output
    assert ("calibration" in done.output) == named
