"""inf and nan in a checkpoint are found while it is hashed, and whose fault they are is said."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.finite import EXPONENTS, Finite
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.runtime.errors import BuildError, CheckpointError

Get = Callable[[str], Path]


@given(
    dtype=st.sampled_from(list(EXPONENTS)),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    bad=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from([math.inf, -math.inf, math.nan]))
    ),
    chunk=st.integers(1, 40),
)
def test_they_are_found_wherever_the_chunks_end(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: torch.dtype,
    sizes: list[int],
    bad: list[tuple[int, int, float]],
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("finite") / "x.safetensors"
    largest = torch.finfo(dtype).max
    tensors = {f"t{k}": torch.full((size,), largest, dtype=dtype) for k, size in enumerate(sizes)}
    for which, place, value in bad:
        if which < len(sizes):
            tensors[f"t{which}"][place % sizes[which]] = value
    save_file(tensors, path)
    finite = Finite(read_header(path).items())
    data = path.read_bytes()
    for start in range(0, len(data), chunk):
        finite.see(data[start : start + chunk])
    assert set(finite.broken) == {name for name, each in tensors.items() if not each.isfinite().all()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_broken_weight_is_the_checkpoints_fault(checkpoint: Get, tmp_path: Path, precision: str) -> None:
    """flux-nano's weights are bf16: linked in bf16, made anew in fp32."""
    folder = shutil.copytree(checkpoint("flux-nano"), tmp_path / "checkpoint")
    path = next((folder / "text_encoder_2").glob("*.safetensors"))
    tensors = load_file(path)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[name][0, 0] = math.nan
    save_file(tensors, path)
    with pytest.raises(
        (CheckpointError, BuildError),
        match=f"t5: {name} has values that are not finite; the checkpoint is damaged",
    ):
        build(str(folder), tmp_path / "bundle", precision=precision, stages=["t5"])
    assert not (tmp_path / "bundle").exists()
