"""`flux::QKNormRope` for torch and for ONNX; plugins/qk_norm_rope/README.md has its contract.

In ONNX it is a model-local function: whoever knows no better runs its body of standard operators, and
TensorRT may take the plugin of the same name instead.
"""

from __future__ import annotations

from typing import no_type_check

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset
from torch import Tensor


def qk_norm_rope(
    qkv: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor, num_heads: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Queries and keys, RMS-normed per head and rotated, in float32 inside.

    While torch.export traces it becomes the node; otherwise it computes.

    Args:
        qkv: [B, L, C], what a projection leaves: H E channels of queries, H E of keys, then anything.
        q_scale: [E], the weight of the queries' norm.
        k_scale: [E], the weight of the keys' norm.
        cos: float32 [L, E / 2].
        sin: float32 [L, E / 2].
        num_heads: H.
        epsilon: added to the mean square.

    Returns:
        q and k [B, H, L, E] in qkv's dtype.
    """
    E = q_scale.shape[0]
    if torch.compiler.is_exporting():
        q, k = torch.onnx.ops.symbolic_multi_out(
            "flux::QKNormRope",
            (qkv, q_scale, k_scale, cos, sin),
            {"num_heads": num_heads, "epsilon": epsilon},
            dtypes=(qkv.dtype,) * 2,
            shapes=((qkv.shape[0], num_heads, qkv.shape[1], E),) * 2,
            version=1,
        )
        return q, k
    heads = qkv[..., : 2 * num_heads * E].unflatten(-1, (2, num_heads, E)).permute(2, 0, 3, 1, 4).float()
    q, k = (
        _rotate(F.rms_norm(x, (E,), scale.float(), epsilon), cos, sin).to(qkv.dtype)
        for x, scale in zip(heads, (q_scale, k_scale), strict=True)
    )
    return q, k


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


@script(Opset("flux", 1), default_opset=op)
@no_type_check
def QKNormRope(qkv, q_scale, k_scale, cos, sin, num_heads: int, epsilon: float):  # noqa: N802
    """The op as a function of standard operators."""
    heads = op.Constant(value_int=num_heads)
    head_dim = op.Shape(q_scale)
    width = op.Mul(heads, head_dim)
    one_head = op.Concat(op.Constant(value_ints=[0, 0, -1]), head_dim, axis=0)
    q = op.Reshape(op.Slice(qkv, op.Constant(value_ints=[0]), width, op.Constant(value_ints=[2])), one_head)
    k = op.Reshape(op.Slice(qkv, width, op.Add(width, width), op.Constant(value_ints=[2])), one_head)
    q = op.RMSNormalization(op.Cast(q, to=1), op.Cast(q_scale, to=1), axis=-1, epsilon=epsilon)
    k = op.RMSNormalization(op.Cast(k, to=1), op.Cast(k_scale, to=1), axis=-1, epsilon=epsilon)
    tables = op.Concat(op.Shape(qkv, start=0, end=1), op.Shape(cos), axis=0)
    cos = op.Expand(cos, tables)
    sin = op.Expand(sin, tables)
    q = op.RotaryEmbedding(op.Transpose(q, perm=[0, 2, 1, 3]), cos, sin, interleaved=1)
    k = op.RotaryEmbedding(op.Transpose(k, perm=[0, 2, 1, 3]), cos, sin, interleaved=1)
    return op.CastLike(q, qkv), op.CastLike(k, qkv)


def functions() -> list[ir.Function]:
    """What a graph with such nodes must also hold."""
    return [ir.serde.deserialize_function(QKNormRope.to_function_proto())]
