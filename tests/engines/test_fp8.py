"""fp8 stages build for sm 8.9, and TensorRT-RTX computes the quantised layers in FP8."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
QUANTISED = {"denoiser": 8 + 2 * 2, "t5": 2 * 4}
"""Products of dev-like: T5's q, k, v become one, and its wi_0, wi_1."""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
@pytest.mark.parametrize(("base", "attention"), [("bf16", False), ("bf16", True), ("fp16", False)])
def test_the_products_are_fp8(fp8_bundle: Callable[..., Path], base: str, attention: bool) -> None:
    child = subprocess.run(
        [sys.executable, TESTS / "fp8_layers.py", fp8_bundle(base, attention)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    built = {row["stage"]: row for row in rows}
    assert set(built) == set(QUANTISED), child.stderr[-2000:]
    for stage, row in built.items():
        assert row.get("fault") is None
        assert row["bytes"] > 0
        assert {"QUANTIZE", "DEQUANTIZE"} <= set(row["layers"])
        assert row["products"].count("FP8") == QUANTISED[stage], row["products"]
