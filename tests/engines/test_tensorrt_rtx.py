"""TensorRT-RTX makes its own attention and rotary layers of a stage's graph."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_trt.exporter.families.flux1.variants import PARTS as STAGES

SCRIPT = Path(__file__).parent.parent / "build_engines.py"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
def test_native_layers(bundle: Callable[..., Path]) -> None:
    root = bundle("dev-like", "fp16")
    child = subprocess.run(
        [sys.executable, SCRIPT, root], capture_output=True, text=True, timeout=900, check=False
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    built = {row["stage"]: row for row in rows}
    assert set(built) == set(STAGES), child.stderr[-2000:]
    assert {name: row.get("fault") for name, row in built.items() if not row["bytes"]} == {}
    assert {"ATTENTION_INPUT", "ROTARY_EMBEDDING"} <= set(built["denoiser"]["layers"])
