"""INT8: 255 evenly spaced numbers around 0.

Weights have a scale for each output channel. Activations, where they are quantised too, have one static scale
and no zero point: TensorRT knows symmetric INT8 only, and so one graph serves all backends.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise.scaled import Scaled

LARGEST = 127.0


def to_int8(x: Tensor, scale: Tensor) -> Tensor:
    """ONNX's QuantizeLinear: x / scale, rounded to nearest even, saturated to -128 and 127."""
    return (x.float() / scale.float()).round_().clamp_(-128, LARGEST).to(torch.int8)


SCALED = Scaled(ir.DataType.INT8, torch.int8, LARGEST, to_int8, "int8", turned=True)
