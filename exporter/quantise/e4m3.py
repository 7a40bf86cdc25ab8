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

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise import scaled
from flux_trt.exporter.quantise.scaled import Scaled
from flux_trt.runtime.bundle.manifest import Precision

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
Statistic = Literal["amax", "p99_9", "p99_99", "p99_999"]


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """How a bundle is to be quantised, where its precision is fp8 or one like it."""

    base: Precision = "bf16"
    """The type of all that is not quantised: bf16, fp16 or fp32."""
    attention: bool = False
    """Also the queries, keys and values of the denoiser's attention, in E4M3."""
    calibration: Path | None = None
    """A file of `flux-export calibrate`; None: the bundle calibrates by itself."""
    per_channel: bool = True
    """A weight has a scale for each output channel; False: one."""
    statistic: Statistic = "amax"
    """What of an activation fits into the codes; what is larger saturates."""


def scale_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest scale in `dtype` that brings amax into E4M3."""
    return scaled.scale_of(amax, dtype, LARGEST)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """ONNX's QuantizeLinear: x / scale, saturated to +-448, rounded to nearest even."""
    return (x.float() / scale.float()).clamp_(-LARGEST, LARGEST).to(E4M3)


SCALED = Scaled(ir.DataType.FLOAT8E4M3FN, E4M3, LARGEST, to_e4m3, "e4m3")
rounded = SCALED.rounded


def quantize_weight(weight: Tensor, dtype: torch.dtype, per_channel: bool) -> tuple[Tensor, Tensor]:
    """A linear layer's weight [out, in] -> E4M3 [out, in], and its scale in `dtype`: [out], or []."""
    codes, scale = SCALED.encode(weight, dtype, per_channel).values()
    return codes, scale
