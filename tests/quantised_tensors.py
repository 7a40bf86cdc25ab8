"""Small quantised tensors in the forms in which they are published, and what they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file

from flux_trt.exporter.checkpoints.quantised.decode import decoded
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, read_header, read_metadata

MADE = Path(__file__).parent / "quantised"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
NUMPY = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
Tensors = dict[str, torch.Tensor]


def opened(
    path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None, config: Mapping | None = None
) -> dict[str, AnyTensor]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return decoded(read_header(path), read_metadata(path), config or {})


def note(said: object) -> torch.Tensor:
    """As `comfy_quant` and `quant_state` lie in files."""
    return torch.tensor(
        list(said if isinstance(said, bytes) else json.dumps(said).encode()), dtype=torch.uint8
    )


def quantised(weight: torch.Tensor, dtype: torch.dtype, rows: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and a scale for all of it or [out, 1]."""
    largest = weight.reshape(len(weight), -1).abs().amax(1, keepdim=True) if rows else weight.abs().max()
    scale = largest.float() / LARGEST[dtype]
    return (weight / scale.view(-1, *[1] * (weight.ndim - 1)) if rows else weight / scale).to(dtype), scale


def numbers(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What they stand for, without torch's fp8."""
    bits = codes.contiguous().view(torch.uint8).numpy().view(NUMPY[dtype]).astype(np.float32)
    return torch.from_numpy(bits * scale.float().numpy().reshape(-1, *[1] * (bits.ndim - 1)))


def layer(
    dtype: torch.dtype = E4M3, rows: bool = False, shape: tuple[int, ...] = (5, 7)
) -> tuple[Tensors, torch.Tensor]:
    """A layer `a.0` by its new names without a note, and its weight's numbers."""
    torch.manual_seed(math.prod(shape))
    codes, scale = quantised(torch.randn(shape) * 0.05, dtype, rows)
    return {"a.0.weight": codes, "a.0.weight_scale": scale}, numbers(codes, scale, dtype)


REST = {
    "a.0.bias": torch.ones(5),
    "norm.weight": torch.rand(7).bfloat16(),
    "cast.weight": torch.ones(3, 2).to(E4M3),
}
