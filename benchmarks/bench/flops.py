"""The FLOPs and bytes of a stage, counted from its ONNX graph.

A multiply-add is two FLOPs. Products, convolutions and attention are counted exactly; of the rest, one FLOP
for each element made, more for norms, softmax and rotation, none for what only moves data.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from flux_trt.bench.schema import Count
from flux_trt.bench.shapes import Shapes
from flux_trt.runtime.backends.memory import shape
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import StageName
from flux_trt.runtime.tasks.dims import dims_of
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.texts import longest

VIEWS = {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"}
MOVES = VIEWS | {"Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Gather", "GatherND", "Pad"}
MOVES |= {"Range", "Resize", "Slice", "Split", "Tile", "Transpose"}
PER_ELEMENT = {
    "LayerNormalization": 5,
    "GroupNormalization": 5,
    "RMSNormalization": 4,
    "Softmax": 4,
    "Gelu": 4,
}
PER_ELEMENT |= {"RotaryEmbedding": 3, "Sigmoid": 2, "QuantizeLinear": 2}


def count(bundle: Bundle, stage: StageName, request: Request) -> Count:
    """One run of a stage for a batch of the request.

    Raises:
        BenchError: a shape that cannot be told from the graph.
    """
    text = longest(bundle, request.texts(slice(None)))
    entry, known = bundle.stage(stage), dims_of(request, bundle.manifest, text)
    inputs = {tensor.name: shape(tensor, known) for tensor in entry.inputs}
    return count_graph(bundle.root / entry.graph, inputs)


def count_graph(path: Path, inputs: dict[str, tuple[int, ...]]) -> Count:
    """One run of the graph at `path` on inputs of these shapes."""
    shapes = Shapes(path, inputs)
    nodes = shapes.graph.node
    ends = [each.name for each in (*shapes.graph.input, *shapes.graph.output)]
    return Count(
        matrix_flops=sum(matrix_flops(node, shapes) for node in nodes),
        other_flops=sum(_other_flops(node, shapes) for node in nodes),
        weight_bytes=sum(map(shapes.nbytes, shapes.weights)),
        io_bytes=sum(map(shapes.nbytes, ends)),
        unfused_bytes=sum(_traffic(node, shapes) for node in nodes),
    )


def matrix_flops(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Of a product, a convolution or an attention; 0 for other nodes."""
    if node.op_type == "MatMul":
        return 2 * shapes.elements(node.output[0]) * shapes.dims(node.input[0])[-1]
    if node.op_type == "Gemm":
        transposed = next((each.i for each in node.attribute if each.name == "transA"), 0)
        inner = shapes.dims(node.input[0])[0 if transposed else 1]
        return 2 * shapes.elements(node.output[0]) * inner
    if node.op_type == "Conv":
        # Weights are [out, in / groups, *kernel]: each output element takes one product with a filter.
        return 2 * shapes.elements(node.output[0]) * math.prod(shapes.dims(node.input[1])[1:])
    if node.op_type == "Attention":
        return _attention(node, shapes)
    return 0


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Queries by keys, then scores by values; the softmax between them is `other`."""
    q, k, v = (shapes.dims(name) for name in node.input[:3])
    if len(q) == 4:  # [B, H, L, E]
        batch, heads, length, width = q
        return 2 * batch * heads * length * k[2] * (width + v[3])
    heads = next(each.i for each in node.attribute if each.name == "q_num_heads")  # [B, L, H * E]
    return 2 * q[0] * q[1] * k[1] * (q[2] + v[2] * heads // _kv_heads(node))


def _kv_heads(node: onnx.NodeProto) -> int:
    return next(int(each.i) for each in node.attribute if each.name == "kv_num_heads")


def _other_flops(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type in MOVES or node.op_type in ("MatMul", "Gemm", "Conv"):
        return 0
    if node.op_type == "Attention":
        q, k = (shapes.dims(name) for name in node.input[:2])
        heads = q[1] if len(q) == 4 else next(a.i for a in node.attribute if a.name == "q_num_heads")
        return PER_ELEMENT["Softmax"] * q[0] * heads * q[-2] * k[-2]
    read = max((shapes.elements(name) for name in node.input if name), default=0)
    made = sum(shapes.elements(name) for name in node.output if name)
    reduces = node.op_type.startswith(("Reduce", "Arg"))
    return read if reduces else PER_ELEMENT.get(node.op_type, 1) * made


def _traffic(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type in VIEWS:
        return 0
    return sum(shapes.nbytes(name) for name in {*node.input, *node.output} if name)
