"""FLUX.3's stages as TensorRT-RTX engines for sm 8.9, built in child processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux3_checkpoints as flux3
import pytest

from flux_trt.exporter.engines.profile import Shapes, profiles
from flux_trt.runtime.bundle import manifest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
TESTS = Path(__file__).parent.parent
FP8 = {"text": 8 * 4, "context": 2 * 3, "denoiser": 2 * 3 + 3 * 3 + 1}
"""Products of the small model: of eight layers that are not tapped q, k, v become one, and gate and up; of
blocks q, k, v and mlp_in do, but for the last, whose MLP sees the picture alone."""


def built(script: str, root: Path) -> dict[str, dict[str, Any]]:
    """What TensorRT makes of each stage, all of which build."""
    command = [sys.executable, str(TESTS / script), str(root)]
    place = {**os.environ, "PYTHONPATH": str(TESTS)}
    child = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=place)
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert {row["stage"] for row in rows} == set(manifest.read(root).stages), child.stderr[-2000:]
    assert {row["stage"]: row.get("fault") for row in rows if not row["bytes"]} == {}
    return {row["stage"]: row for row in rows}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("base", "fp32"),
        ("distilled", "bf16"),
        pytest.param("base", "bf16", marks=pytest.mark.slow),
        pytest.param("distilled", "fp32", marks=pytest.mark.slow),
        pytest.param("base", "fp16", marks=pytest.mark.slow),
    ],
)
def test_every_graph_builds(flux3_bundle: Callable[..., Path], kind: str, precision: str) -> None:
    """No references at all are within the ranges, so one denoiser serves with and without."""
    found = built("build_engines.py", flux3_bundle(kind, precision))
    for name in ("denoiser", "context", "references"):
        assert {"ATTENTION_INPUT", "ROTARY_EMBEDDING"} <= set(found[name]["layers"])


@pytest.mark.parametrize("kind", ["distilled", pytest.param("base", marks=pytest.mark.slow)])
def test_every_graph_of_an_fp8_bundle_builds(flux3_fp8: Callable[[str], Path], kind: str) -> None:
    """All products of blocks and of layers that are not tapped are FP8, and nothing else is."""
    root = flux3_fp8(kind)
    found = built("fp8_layers.py", root)
    plan = {name: (stage.precision, stage.base) for name, stage in manifest.read(root).stages.items()}
    quantised = {name for name, each in plan.items() if each == ("fp8", "bf16")}
    assert quantised == {"text", "context", "denoiser"}
    for name, row in found.items():
        assert ({"QUANTIZE", "DEQUANTIZE"} <= set(row["layers"])) == (name in quantised)
        assert ("FP8" in row["products"]) == (name in quantised), row["products"]
    counts = {name: found[name]["products"].count("FP8") for name in quantised}
    assert counts == FP8


def test_profiles_have_room_for_windows_of_any_length_and_references(
    flux3_bundle: Callable[..., Path],
) -> None:
    found = manifest.read(flux3_bundle("base"))
    (denoiser, *_) = profiles(found, "denoiser", Shapes(((64, 64),), max_references=2))
    assert denoiser["text"] == (80, 320, flux3.LENGTH)
    assert denoiser["tokens"] == (16, 16, 16)
    assert denoiser["reference"] == (0, 16, 2 * 4096)
    assert denoiser["sequence"] == (80 + 16, 320 + 16 + 16, flux3.LENGTH + 16 + 2 * 4096)
    (references, *_) = profiles(found, "references", Shapes(((64, 64),), max_references=2))
    assert (references["reference"], references["batch"]) == ((1, 16, 2 * 4096), (1, 1, 2))
    for asked, most in ((100, 160), (160, 160), (1, 80), (9999, flux3.LENGTH)):
        (text, *_) = profiles(found, "text", Shapes(((64, 64),), max_text=asked))
        assert text["text"] == (80, min(320, most), most)
