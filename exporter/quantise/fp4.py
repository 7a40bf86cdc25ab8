"""NVFP4: E2M1 codes, with an E4M3 scale for each block of 16 channels and one scale for all of these.

    codes ------------------------------------------> DequantizeLinear (block_size 16) -> Transpose -> MatMul
    scales [out, in / 16] -> DequantizeLinear (scalar) --^

    x -> TRT_FP4DynamicQuantize (scalar) -> codes and scales, and the same two DequantizeLinear

E2M1 (2 bits of exponent, 1 of mantissa) has 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. An activation's
blocks are scaled while the layer runs, by an operator that only TensorRT has, on GPUs of compute capability
10 and newer; its scalar is static. Source: NVIDIA TensorRT, "Working with quantized types", of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from flux_trt.exporter.quantise.drawing import KINDS, Drawing
from flux_trt.exporter.quantise.e4m3 import E4M3, to_e4m3
from flux_trt.exporter.quantise.e4m3 import LARGEST as LARGEST_SCALE
from flux_trt.exporter.quantise.format import SCALE, SCALE_2, Shape
from flux_trt.exporter.quantise.int4 import packed, unpacked
from flux_trt.exporter.quantise.scaled import scale_of

BLOCK, LARGEST = 16, 6.0
DOMAIN, DYNAMIC = "trt", "TRT_FP4DynamicQuantize"
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_UP = torch.tensor([0.75, 1.75, 3.5]).nextafter(torch.tensor(0.0))
"""Ties that go to the upper neighbour, which is the even one."""
EDGES = torch.stack(
    [torch.tensor(0.25), _UP[0], torch.tensor(1.25), _UP[1], torch.tensor(2.5), _UP[2], torch.tensor(5.0)]
)


def to_e2m1(x: Tensor) -> Tensor:
    """The nearest code, even at ties, saturated at +-6: float32 -> uint8, 0 to 15, the sign in bit 3."""
    codes = torch.bucketize(x.abs(), EDGES.to(x.device), out_int32=True).to(torch.uint8)
    return codes | (x.signbit().to(torch.uint8) << 3)


def from_e2m1(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8, 0 to 15 -> their values."""
    values = torch.cat([VALUES, -VALUES]).to(codes.device, dtype)
    return values[codes.int()]


def scalar_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale of all scales, in `dtype`: the largest block's own scale is then E4M3's largest number."""
    return scale_of(amax, dtype, LARGEST * LARGEST_SCALE)


def blockwise(x: Tensor, scalar: Tensor, base: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., n], float32 -> codes, uint8 [..., n], and E4M3 scales [..., n / 16]."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    scale = to_e4m3(blocks.abs().amax(-1) / LARGEST, scalar)
    inside = _scales(scale, scalar, base).float()[..., None]
    quotient = torch.where(inside > 0, blocks / inside, torch.zeros_like(blocks))
    return to_e2m1(quotient).flatten(-2), scale


def _scales(scale: Tensor, scalar: Tensor, base: torch.dtype) -> Tensor:
    return scale.to(base) * scalar.to(base)


def _decoded(codes: Tensor, scale: Tensor, scalar: Tensor, base: torch.dtype) -> Tensor:
    blocks = from_e2m1(codes, base).unflatten(-1, (-1, BLOCK))
    return (blocks * _scales(scale, scalar, base)[..., None]).flatten(-2)


class Fp4:
    """Weights and inputs in NVFP4."""

    kind = ir.DataType.FLOAT4E2M1
    turned = False

    def parts(
        self, shape: Shape, base: torch.dtype, per_channel: bool
    ) -> Mapping[str, tuple[torch.dtype, Shape]]:
        """Codes, two in a byte, their scales in E4M3, and the scale of these in `base`."""
        out, into = shape
        return {"": (torch.uint8, (out, into // 2)), SCALE: (E4M3, (out, into // BLOCK)), SCALE_2: (base, ())}

    def encode(self, weight: Tensor, base: torch.dtype, per_channel: bool) -> Mapping[str, Tensor]:
        """A weight [out, in], float32."""
        scalar = scalar_of(weight.abs().max(), base)
        codes, scale = blockwise(weight, scalar, base)
        return {"": packed(codes), SCALE: scale, SCALE_2: scalar}

    def decode(self, parts: Mapping[str, Tensor], base: torch.dtype) -> Tensor:
        """The weight [out, in] in `base`."""
        return _decoded(unpacked(parts[""]), parts[SCALE], parts[SCALE_2], base)

    def draw(self, to: Drawing, weight: ir.Value, before: ir.Node, per_channel: bool) -> ir.Value:
        """See `Weights.draw`."""
        assert weight.shape is not None
        assert weight.name is not None
        name, base = weight.name, KINDS[to.base]
        out, into = (int(dim) for dim in weight.shape.numpy())
        scale = to.part(name + SCALE, ir.DataType.FLOAT8E4M3FN, [out, into // BLOCK])
        scalar = to.part(name + SCALE_2, base, [])
        weight.type = ir.TensorType(self.kind)
        return _drawn(to, weight, scale, scalar, f"{name}_rounded", base, before, 1)

    def scale_of(self, amax: float, base: torch.dtype) -> Tensor:
        """See `Inputs.scale_of`."""
        return scalar_of(torch.tensor(amax), base)

    def draw_input(self, to: Drawing, value: ir.Value, before: ir.Node, amax: float) -> ir.Value:
        """The dynamic operator, and what makes numbers of its codes again."""
        scalar = self.scale_of(amax, to.base)
        return to.once(
            ("fp4", value.name, float(scalar)), lambda: self._drawn_input(to, value, before, scalar)
        )

    def _drawn_input(self, to: Drawing, value: ir.Value, before: ir.Node, scalar: Tensor) -> ir.Value:
        assert value.dtype is not None
        name = f"{value.name}_fp4"
        told = to.constant(f"{name}_told", scalar.float())
        outputs = [(name, self.kind), (f"{name}{SCALE}", ir.DataType.FLOAT8E4M3FN)]
        how = {"axis": -1, "block_size": BLOCK, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}
        codes, scale = to.node(DYNAMIC, [value, told], outputs, before, domain=DOMAIN, attributes=how)
        own = to.constant(f"{name}{SCALE_2}", scalar)
        return _drawn(to, codes, scale, own, f"{name}_rounded", value.dtype, before, -1)

    def rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        """x as the nodes leave it, in x's dtype."""
        codes, scales = blockwise(x.float(), scale, x.dtype)
        return _decoded(codes, scales, scale, x.dtype)


def _drawn(
    to: Drawing,
    codes: ir.Value,
    scale: ir.Value,
    scalar: ir.Value,
    name: str,
    kind: ir.DataType,
    before: ir.Node,
    axis: int,
) -> ir.Value:
    """Two DequantizeLinear: of the scales, and with these of the codes."""
    (scales,) = to.node("DequantizeLinear", [scale, scalar], [(f"{name}_scales", kind)], before)
    blocks = {"axis": axis, "block_size": BLOCK}
    (after,) = to.node(
        "DequantizeLinear", [codes, scales], [(name, kind)], before, codes.shape, attributes=blocks
    )
    return after


FP4 = Fp4()
