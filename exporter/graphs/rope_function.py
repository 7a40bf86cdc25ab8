"""`flux::QKNormRope` as a model-local ONNX function.

Whoever knows no better runs its body of standard operators; TensorRT may take the plugin of the same name.
The body depends on what comes in: queries and keys in one tensor or apart, and 32 or 16 bits.
"""

from __future__ import annotations

from typing import no_type_check

import onnx_ir as ir
from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

NAME = "QKNormRope"
APART = 6
"""Inputs of a node that takes queries and keys apart."""


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


@script(Opset("flux", 1), default_opset=op)
@no_type_check
def Apart(q, k, q_scale, k_scale, cos, sin, num_heads: int, epsilon: float):  # noqa: N802
    """The same for queries and keys that are tensors of their own."""
    one_head = op.Concat(op.Constant(value_ints=[0, 0, -1]), op.Shape(q_scale), axis=0)
    queries, keys = op.Reshape(q, one_head), op.Reshape(k, one_head)
    queries = op.RMSNormalization(op.Cast(queries, to=1), op.Cast(q_scale, to=1), axis=-1, epsilon=epsilon)
    keys = op.RMSNormalization(op.Cast(keys, to=1), op.Cast(k_scale, to=1), axis=-1, epsilon=epsilon)
    tables = op.Concat(op.Shape(q, start=0, end=1), op.Shape(cos), axis=0)
    cos = op.Expand(cos, tables)
    sin = op.Expand(sin, tables)
    queries = op.RotaryEmbedding(op.Transpose(queries, perm=[0, 2, 1, 3]), cos, sin, interleaved=1)
    keys = op.RotaryEmbedding(op.Transpose(keys, perm=[0, 2, 1, 3]), cos, sin, interleaved=1)
    return op.CastLike(queries, q), op.CastLike(keys, k)


def functions(model: ir.Model) -> list[ir.Function]:
    """What a graph with such nodes must also hold; all its nodes are of one form."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) == ("flux", NAME)]
    forms = {(len(node.inputs) == APART, node.inputs[-3].dtype != ir.DataType.FLOAT) for node in nodes}  # type: ignore[union-attr]
    assert len(forms) <= 1, "a function of ONNX has one body"
    return [function(*form) for form in forms]


def function(apart: bool, low: bool) -> ir.Function:
    """The op's body, for queries and keys that come apart or not, in 16 bits or in 32."""
    found = ir.serde.deserialize_function((Apart if apart else QKNormRope).to_function_proto())
    found.name = NAME
    if low:
        for node in [node for node in found if node.op_type == "RMSNormalization"]:
            _spell_out(found, node)
    return found


def _spell_out(inside: ir.Function, norm: ir.Node) -> None:
    """A norm whose squares begin with |x| in 16 bits, and which computes the same in float32.

    TensorRT keeps what two kernels use in the type that the uses begin with: the float32 of RMSNormalization,
    or 16 bits, half of it, where one of them begins in these.
    """
    wide, scale = norm.inputs
    assert wide is not None
    cast = wide.producer()
    assert cast is not None
    epsilon = ir.RefAttr("value_float", "epsilon", ir.AttributeType.FLOAT)
    size = ir.node("Abs", [cast.inputs[0]])
    square = ir.node("Cast", [size.outputs[0]], {"to": ir.DataType.FLOAT})
    product = ir.node("Mul", [square.outputs[0]] * 2)
    last = ir.node("Constant", [], {"value_ints": [-1]})
    mean = ir.node("ReduceMean", [product.outputs[0], last.outputs[0]])
    least = ir.node("Constant", [], {"value_float": epsilon})
    above = ir.node("Add", [mean.outputs[0], least.outputs[0]])
    root = ir.node("Sqrt", [above.outputs[0]])
    share = ir.node("Reciprocal", [root.outputs[0]])
    normed = ir.node("Mul", [wide, share.outputs[0]])
    scaled = ir.node("Mul", [normed.outputs[0], scale])
    nodes = [size, square, product, last, mean, least, above, root, share, normed, scaled]
    inside.insert_before(norm, nodes)
    for use in list(norm.outputs[0].uses()):
        use.node.replace_input_with(use.idx, scaled.outputs[0])
    inside.remove(norm)
