"""Codes with one scale: a weight has one for each output channel or one in all, an activation a static one.

    x ------> QuantizeLinear -> DequantizeLinear -+
                                                  MatMul -> bias and all else as before
    codes ---------------------> DequantizeLinear +

A scale is the smallest one in the type around that brings the largest value inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise.drawing import KINDS, Drawing
from flux_trt.exporter.quantise.format import SCALE, Shape

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def scale_of(amax: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
    """The smallest scale in `dtype` that brings amax to `largest`: float32 of any shape -> the same shape.

    A tensor of zeros has the scale 1. In float16 the scale is at most 65504 / largest, so that no value
    becomes inf when it is scaled back.
    """
    exact = amax.float() / largest
    scale = exact.to(dtype)
    up = (scale.view(BITS[dtype]) + 1).view(dtype)  # the next larger, for what is not negative
    scale = torch.where(scale.float() < exact, up, scale)
    scale = torch.where(amax == 0, torch.ones_like(scale), scale)
    return scale.clamp(max=torch.finfo(dtype).max / largest)


@dataclass(frozen=True)
class Scaled:
    """Weights and inputs as codes of one type."""

    kind: ir.DataType
    dtype: torch.dtype
    largest: float
    coded: Callable[[Tensor, Tensor], Tensor]
    """ONNX's QuantizeLinear: of x and its scale, the codes."""
    suffix: str
    """Of the names of what is rounded."""
    turned: bool = False
    """Whether a weight's codes lie as [in, out]."""

    def parts(
        self, shape: Shape, base: torch.dtype, per_channel: bool
    ) -> Mapping[str, tuple[torch.dtype, Shape]]:
        """Codes, and a scale in `base`, [out] or []."""
        return {
            "": (self.dtype, shape[::-1] if self.turned else shape),
            SCALE: (base, shape[:1] if per_channel else ()),
        }

    def encode(self, weight: Tensor, base: torch.dtype, per_channel: bool) -> Mapping[str, Tensor]:
        """A weight [out, in], float32."""
        low, high = weight.aminmax(dim=1) if per_channel else weight.aminmax()  # abs() would copy the weight
        scale = scale_of(torch.maximum(-low, high), base, self.largest)
        codes = self.coded(weight, scale[:, None] if per_channel else scale)
        return {"": codes.T if self.turned else codes, SCALE: scale}

    def decode(self, parts: Mapping[str, Tensor], base: torch.dtype) -> Tensor:
        """The weight [out, in] in `base`."""
        codes = parts[""].T if self.turned else parts[""]
        return codes.to(base) * parts[SCALE].unsqueeze(-1)  # [out, 1], or [1]

    def draw(self, to: Drawing, weight: ir.Value, before: ir.Node, per_channel: bool) -> ir.Value:
        """See `Weights.draw`."""
        assert weight.shape is not None
        assert weight.name is not None
        name, base = weight.name, KINDS[to.base]
        scale = to.part(name + SCALE, base, [int(weight.shape.numpy()[0])] if per_channel else [])
        weight.type = ir.TensorType(self.kind)
        axis = {"axis": int(self.turned)} if per_channel else {}
        if self.turned:
            weight.shape = ir.Shape(weight.shape[::-1])
        outputs = [(f"{name}_rounded", base)]
        (after,) = to.node(
            "DequantizeLinear", [weight, scale], outputs, before, weight.shape, attributes=axis
        )
        return after

    def scale_of(self, amax: float, base: torch.dtype) -> Tensor:
        """See `Inputs.scale_of`."""
        return scale_of(torch.tensor(amax), base, self.largest)

    def draw_input(self, to: Drawing, value: ir.Value, before: ir.Node, amax: float) -> ir.Value:
        """Q and DQ of what enters a layer."""
        scale = self.scale_of(amax, to.base)
        return to.once((self.suffix, value.name, float(scale)), lambda: self._pair(to, value, before, scale))

    def _pair(self, to: Drawing, value: ir.Value, before: ir.Node, scale: Tensor) -> ir.Value:
        assert value.dtype is not None
        name = f"{value.name}_{self.suffix}"
        of = [
            to.constant(f"{name}{SCALE}", scale),
            to.constant(f"{name}_zero", torch.zeros((), dtype=self.dtype)),
        ]
        (inside,) = to.node("QuantizeLinear", [value, *of], [(name, self.kind)], before, value.shape)
        outputs = [(f"{name}_rounded", value.dtype)]
        (after,) = to.node("DequantizeLinear", [inside, *of], outputs, before, value.shape)
        return after

    def rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        """x as Q and DQ leave it, in x's dtype."""
        return self.coded(x, scale).to(x.dtype) * scale.to(x.dtype)
