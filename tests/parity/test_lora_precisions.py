"""Branches in every precision: what the denoiser gives with a LoRA is what it gives of merged weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import loras
import numpy as np
import pytest

from flux_trt.exporter.build import build
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.verify.verify import verify
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora.chosen import chosen
from flux_trt.runtime.lora.factors import read

STAGES = ["conditioner", "denoiser"]
ALLOWED = {"fp16": 0.01, "bf16": 0.06, "fp8": 0.25}
"""Of the largest value: two ways round at different places."""
DIMS = {"batch": 1, "tokens": 16, "text": 64, "sequence": 80}


def velocity(root: Path, backend: str, name: str, more: dict[str, np.ndarray]) -> np.ndarray:
    stage, draw = Bundle.open(root, check=False).stage(name), np.random.default_rng(0)
    given = dict(more)
    for each in stage.inputs:
        if each.name not in more:
            shape = [dim if isinstance(dim, int) else DIMS[dim] for dim in each.dims]
            given[each.name] = draw.standard_normal(shape, np.float32)
    graph = connect(backend, "cpu").load(root / stage.graph, name, stage)
    return np.array(graph.run(given)["velocity"].numpy())


@pytest.mark.parametrize(
    ("precision", "backend"), [("fp16", "onnxruntime"), ("bf16", "openvino"), ("fp8", "openvino")]
)
def test_the_effect_is_that_of_merged_weights(
    precision: str,
    backend: str,
    checkpoint: Callable[[str], Path],
    calibration: Path,
    tmp_path: Path,
) -> None:
    source = checkpoint("dev-like")
    file = loras.save(
        tmp_path / "lora.safetensors", loras.FORMS["kohya"](source, loras.update(source, 2, 0.15))
    )
    asked = {"precision": precision, "stages": STAGES}
    if precision == "fp8":
        asked["fp8"] = Fp8(base="bf16", calibration=calibration)
    build(str(source), tmp_path / "bundle", **asked, lora_rank=4)
    shutil.copytree(tmp_path / "bundle", tmp_path / "merged")
    build(str(source), tmp_path / "merged", **asked, lora=[str(file)])
    opened = Bundle.open(tmp_path / "bundle", check=False)
    takes = opened.manifest.adapters
    assert takes is not None
    arrays = dict(read(opened, chosen(file) or ()).arrays["denoiser"])
    assert {each.dtype for each in arrays.values()} == {np.dtype(np.float16)}
    with pytest.raises(RequestError, match=r"lora\.safetensors has values beyond float16, .* use less of it"):
        read(opened, chosen((file, 1e7)) or ())
    zeros = {name: np.zeros_like(each) for name, each in arrays.items()}
    run = tmp_path / "bundle", backend
    plain = velocity(*run, "denoiser", {})
    none, found = (velocity(*run, "denoiser_lora", each) for each in (zeros, arrays))
    again = velocity(*run, "denoiser_lora", zeros)
    expected = velocity(tmp_path / "merged", backend, "denoiser", {})
    scale, allowed = np.abs(expected).max(), ALLOWED[precision]
    np.testing.assert_array_equal(again, none)
    assert np.abs(none - plain).max() / scale < allowed
    assert np.abs(found - expected).max() / scale < allowed
    assert np.abs(found - plain).max() / scale > 2 * allowed, "the LoRA is not seen"
    rows = {row.stage: row for row in verify(tmp_path / "bundle")}
    assert set(rows) == {*STAGES, "conditioner_lora", "denoiser_lora"}
    assert all(row.passed for row in rows.values())
