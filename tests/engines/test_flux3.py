"""FLUX.3's stages as TensorRT-RTX engines for sm 8.9, built in child processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flux3_checkpoints as flux3
import pytest

from flux_trt.exporter.engines.profile import Shapes, profiles
from flux_trt.runtime.bundle import manifest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
SCRIPT = Path(__file__).parent.parent / "build_engines.py"


@pytest.mark.parametrize(("kind", "precision"), [("base", "fp32"), ("distilled", "bf16")])
def test_every_graph_builds(flux3_bundle: Callable[..., Path], kind: str, precision: str) -> None:
    """No references at all are within the ranges, so one denoiser serves with and without."""
    root = flux3_bundle(kind, precision)
    child = subprocess.run(
        [sys.executable, SCRIPT, root], capture_output=True, text=True, timeout=900, check=False
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert {row["stage"] for row in rows} == set(manifest.read(root).stages), child.stderr[-2000:]
    assert {row["stage"]: row.get("fault") for row in rows if not row["bytes"]} == {}
    layers = {row["stage"]: row["layers"] for row in rows}
    for name in ("denoiser", "context", "references"):
        assert {"ATTENTION_INPUT", "ROTARY_EMBEDDING"} <= set(layers[name])


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
