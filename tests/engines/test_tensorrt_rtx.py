"""Every stage of every precision is a graph that TensorRT-RTX builds for sm 8.9."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flux_trt.exporter.tensorfile import read_header
from flux_trt.runtime.manifest import STAGES

SCRIPT = Path(__file__).parent.parent / "build_engines.py"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_stage_builds(bundle: Callable[..., Path], precision: str) -> None:
    root = bundle("flux-nano", precision)
    child = subprocess.run(
        [sys.executable, SCRIPT, root], capture_output=True, text=True, timeout=900, check=False
    )
    rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    built = {row["stage"]: row for row in rows}
    assert set(built) == set(STAGES), child.stderr[-2000:]
    assert {name: row.get("fault") for name, row in built.items() if not row["bytes"]} == {}
    assert {"ATTENTION_INPUT", "ROTARY_EMBEDDING"} <= set(built["denoiser"]["layers"])
    weights = sum(info.nbytes for info in read_header(root / "denoiser.safetensors").values())
    assert built["denoiser"]["bytes"] > 0.9 * weights, "an engine holds its weights"
