"""FP8: the numbers of E4M3, and what is kept in it.

E4M3 (4 bits of exponent, 3 of mantissa) reaches to +-448, in steps of 1/8 of a power of two (Micikevicius et
al. 2022, "FP8 formats for deep learning", https://arxiv.org/abs/2209.05433). A tensor is kept as
`E4M3(x / scale)`. The scale only has to bring the largest value inside: a floating-point type is equally
precise at all sizes, so a scale may well be rounded up to what the base type can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flux_trt.runtime.bundle.manifest import Precision

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SCALE = "_scale"
"""Added to a weight's name: the name of its scale."""

Statistic = Literal["amax", "p99_9", "p99_99", "p99_999"]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """How a bundle is to be quantised, where its precision is fp8."""

    base: Precision = "bf16"
    """The type of all that is not quantised: bf16, fp16 or fp32."""
    attention: bool = False
    """Also the queries, keys and values of the denoiser's attention."""
    calibration: Path | None = None
    """A file of `flux-export calibrate`; None: the bundle calibrates by itself."""
    per_channel: bool = True
    """A weight has a scale for each output channel; False: one."""
    statistic: Statistic = "amax"
    """What of an activation fits into E4M3; what is larger saturates."""


def scale_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest scale in `dtype` that brings amax into E4M3: float32 of any shape -> the same shape.

    A tensor of zeros has the scale 1. In float16 the scale is at most 65504 / 448, so that no value becomes
    inf when it is scaled back.
    """
    exact = amax.float() / LARGEST
    scale = exact.to(dtype)
    up = (scale.view(BITS[dtype]) + 1).view(dtype)  # the next larger, for what is not negative
    scale = torch.where(scale.float() < exact, up, scale)
    scale = torch.where(amax == 0, torch.ones_like(scale), scale)
    return scale.clamp(max=torch.finfo(dtype).max / LARGEST)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """ONNX's QuantizeLinear: x / scale, saturated to +-448, rounded to nearest even."""
    return (x.float() / scale.float()).clamp_(-LARGEST, LARGEST).to(E4M3)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """x as QuantizeLinear and DequantizeLinear leave it, in x's dtype."""
    return to_e4m3(x, scale).to(x.dtype) * scale.to(x.dtype)


def quantize_weight(weight: Tensor, dtype: torch.dtype, per_channel: bool) -> tuple[Tensor, Tensor]:
    """A linear layer's weight [out, in] -> E4M3 [out, in], and its scale in `dtype`: [out], or []."""
    low, high = weight.aminmax(dim=1) if per_channel else weight.aminmax()  # abs() would copy the weight
    scale = scale_of(torch.maximum(-low, high), dtype)
    return to_e4m3(weight, scale[:, None] if per_channel else scale), scale
