"""INT4: sixteen evenly spaced numbers, with a scale for each block of channels of a weight's row.

    codes [in, out] --------> DequantizeLinear (axis 0, block_size) -> MatMul
    scales [in / block, out] --^

Both lie as MatMul takes them, which is what onnxruntime and OpenVINO multiply without unpacking the weight
first. Two codes lie in a byte, the first in its low half (ONNX's INT4, ml_dtypes' int4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise.drawing import KINDS, Drawing
from flux_trt.exporter.quantise.format import SCALE, Shape
from flux_trt.exporter.quantise.scaled import scale_of

LARGEST = 7.0
BLOCK = 64


def packed(codes: Tensor) -> Tensor:
    """Codes of four bits in bytes [..., n] -> [..., n / 2], the first of two in the low half."""
    low, high = codes[..., ::2], codes[..., 1::2]
    return (low & 0xF) | (high << 4)


def unpacked(pairs: Tensor) -> Tensor:
    """The other way, uint8 [..., n / 2] -> [..., n], 0 to 15."""
    return torch.stack([pairs & 0xF, pairs >> 4], dim=-1).flatten(-2)


@dataclass(frozen=True)
class Blocks:
    """Weights in INT4."""

    block: int = BLOCK
    kind = ir.DataType.INT4
    turned = True

    def parts(
        self, shape: Shape, base: torch.dtype, per_channel: bool
    ) -> Mapping[str, tuple[torch.dtype, Shape]]:
        """Codes, two in a byte, and scales in `base`."""
        out, into = shape
        return {"": (torch.uint8, (into, out // 2)), SCALE: (base, (into // self.block, out))}

    def encode(self, weight: Tensor, base: torch.dtype, per_channel: bool) -> Mapping[str, Tensor]:
        """A weight [out, in], float32."""
        blocks = weight.T.unflatten(0, (-1, self.block))
        scale = scale_of(blocks.abs().amax(1), base, LARGEST)
        return {"": packed(_codes(blocks, scale).flatten(0, 1).view(torch.uint8)), SCALE: scale}

    def decode(self, parts: Mapping[str, Tensor], base: torch.dtype) -> Tensor:
        """The weight [out, in] in `base`."""
        codes = unpacked(parts[""]).view(torch.int8)
        signed = torch.where(codes > 7, codes - 16, codes).to(base)
        return (signed.unflatten(0, (-1, self.block)) * parts[SCALE][:, None]).flatten(0, 1).T

    def draw(self, to: Drawing, weight: ir.Value, before: ir.Node, per_channel: bool) -> ir.Value:
        """See `Weights.draw`."""
        assert weight.shape is not None
        assert weight.name is not None
        name, base = weight.name, KINDS[to.base]
        out, into = (int(dim) for dim in weight.shape.numpy())
        scale = to.part(name + SCALE, base, [into // self.block, out])
        weight.type, weight.shape = ir.TensorType(self.kind), ir.Shape([into, out])
        outputs, how = [(f"{name}_rounded", base)], {"axis": 0, "block_size": self.block}
        (after,) = to.node("DequantizeLinear", [weight, scale], outputs, before, weight.shape, attributes=how)
        return after


def _codes(blocks: Tensor, scale: Tensor) -> Tensor:
    """blocks [n, block, out] and their scales [n, out]."""
    return (blocks / scale.float()[:, None]).round_().clamp_(-8, LARGEST).to(torch.int8)
