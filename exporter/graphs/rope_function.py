"""`flux::QKNormRope` as a model-local ONNX function.

Whoever knows no better runs its body of standard operators; TensorRT may take the plugin of the same name.
"""

from __future__ import annotations

from typing import no_type_check

import onnx_ir as ir
from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset


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
