"""fp8 stages build for sm 8.9, and TensorRT-RTX computes the quantised layers in FP8."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flux_trt.exporter.build import build
from flux_trt.exporter.quantise.e4m3 import Fp8

TESTS = Path(__file__).parent.parent
QUANTISED = {"denoiser": 8 + 2 * 3, "t5": 2 * 4}
"""Products of dev-like: a single block's linear2 is two; T5's q, k, v become one, and its wi_0, wi_1."""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
@pytest.mark.parametrize(("base", "attention"), [("bf16", False), ("bf16", True), ("fp16", False)])
def test_the_products_are_fp8(fp8_bundle: Callable[..., Path], base: str, attention: bool) -> None:
    built = built_of(fp8_bundle(base, attention))
    assert set(built) == set(QUANTISED)
    for stage, row in built.items():
        assert row.get("fault") is None
        assert row["bytes"] > 0
        assert {"QUANTIZE", "DEQUANTIZE"} <= set(row["layers"])
        assert row["products"].count("FP8") == QUANTISED[stage], row["products"]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
def test_branches_for_loras_leave_the_products_in_fp8(
    fp8_bundle: Callable[..., Path], checkpoint: Callable[[str], Path], calibration: Path, tmp_path: Path
) -> None:
    shutil.copytree(fp8_bundle("bf16"), tmp_path / "bundle")
    fp8 = Fp8(base="bf16", calibration=calibration)
    source, stages = str(checkpoint("dev-like")), ["t5", "denoiser"]
    build(source, tmp_path / "bundle", precision="fp8", fp8=fp8, stages=stages, lora_rank=8)
    built = built_of(tmp_path / "bundle")
    assert built["denoiser_lora"].get("fault") is None
    assert built["denoiser_lora"]["bytes"] > 0
    for stage in ("denoiser", "denoiser_lora"):
        products = built[stage]["products"]
        assert products.count("FP8") == QUANTISED["denoiser"], products
    assert len(built["denoiser_lora"]["products"]) > len(built["denoiser"]["products"])


def built_of(bundle: Path) -> dict[str, dict[str, Any]]:
    """What TensorRT makes of each stage."""
    child = subprocess.run(
        [sys.executable, TESTS / "fp8_layers.py", bundle],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert rows, child.stderr[-2000:]
    return {row["stage"]: row for row in rows}
