"""FLUX.2's stages as TensorRT-RTX engines for sm 8.9, built in child processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flux2_checkpoints as flux2
import flux2_forms as forms
import pytest

from flux_trt.exporter.build import build
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.engines.profile import Shapes, profiles
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.engine import engines

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
SCRIPT = Path(__file__).parent.parent / "build_engines.py"


def built(root: Path) -> dict[str, dict]:
    child = subprocess.run(
        [sys.executable, SCRIPT, root], capture_output=True, text=True, timeout=900, check=False
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert {row["stage"] for row in rows} == set(manifest.read(root).stages), child.stderr[-2000:]
    assert {row["stage"]: row.get("fault") for row in rows if not row["bytes"]} == {}
    return {row["stage"]: row for row in rows}


@pytest.mark.parametrize(
    ("kind", "precision"), [("kv", "fp32"), ("kv", "bf16"), ("dev", "bf16"), ("distilled", "fp16")]
)
def test_every_graph_builds(flux2_bundle: Callable[..., Path], kind: str, precision: str) -> None:
    """The tower with its mask, grouped queries and taps; no references at all are within the ranges."""
    found = built(flux2_bundle(kind, precision))
    assert {"ATTENTION_INPUT", "ROTARY_EMBEDDING"} <= set(found["denoiser"]["layers"])
    assert "ATTENTION_INPUT" in found["text"]["layers"]


def test_an_fp8_denoiser_builds(tmp_path: Path) -> None:
    folder = flux2.write("distilled", tmp_path / "checkpoint")
    codes, _ = forms.fp8(forms.bfl(folder))
    file = forms.save(codes, tmp_path / "klein-fp8.safetensors", forms.official_metadata(codes))
    build(str(file), tmp_path / "bundle", precision="fp8", fp8=Fp8(base="bf16"), stages=["denoiser"])
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(built(tmp_path / "bundle")["denoiser"]["layers"])


def test_the_command_builds_them_with_its_own_profiles(
    flux2_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    root = shutil.copytree(flux2_bundle("kv", "bf16"), tmp_path / "bundle")
    shapes = Shapes(((64, 64),), max_batch=1, max_references=2)
    folders = build_engines(root, Options(capabilities=("8.9",)), shapes)
    stages = [dict(engines(root))[folder].recipe.stage for folder in folders]
    assert set(manifest.read(root).stages) <= set(stages)


def test_profiles_have_room_for_references_of_their_own_size(flux2_bundle: Callable[..., Path]) -> None:
    """A reference of a megapixel may follow a small picture; kept as keys, there may be none."""
    shapes = Shapes(((64, 64),), max_references=2)
    follows, keeps = manifest.read(flux2_bundle("distilled")), manifest.read(flux2_bundle("kv"))
    assert profiles(follows, "denoiser", shapes)[0]["tokens"] == (16, 16, 16 + 2 * 4096)
    assert profiles(keeps, "denoiser", shapes)[0]["tokens"] == (16, 16, 16)
    assert profiles(keeps, "denoiser", shapes)[0]["reference"] == (0, 16, 2 * 4096)
    assert profiles(keeps, "references", shapes)[0]["reference"] == (1, 16, 2 * 4096)
    assert profiles(keeps, "references", shapes)[0]["batch"] == (1, 1, 2)
