"""Graph to graph: large linear layers in a quantised format, as explicit nodes of ONNX.

    x -> QuantizeLinear -> DequantizeLinear -+
                                             MatMul (or Gemm) -> bias and all else as before
    W (codes) -----------> DequantizeLinear -+

The types around are as they were: scales have the base type, DequantizeLinear gives it back. Activations have
one static scale, written into the graph; weights have theirs in the safetensors file, where `weights` puts
both. These are the patterns that TensorRT turns into kernels and that onnxruntime runs as they stand; what
nodes a format has is said beside its numbers. Where a format keeps weights alone, x stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from flux_trt.exporter.families.stage import Stage
from flux_trt.exporter.quantise import e4m3
from flux_trt.exporter.quantise.drawing import Drawing
from flux_trt.exporter.quantise.format import Inputs
from flux_trt.exporter.quantise.formats import FORMATS
from flux_trt.runtime.errors import BuildError

LINEAR = ("MatMul", "Gemm")
SEEN_THROUGH = ("Transpose", "Slice", "DequantizeLinear")
"""Between a weight and its product."""


def quantize(model: ir.Model, stage: Stage) -> None:
    """Quantise a traced stage, in place, as its quantisation says.

    Raises:
        BuildError: the graph has not the layers that the quantisation names.
    """
    plan = stage.quantisation
    assert plan is not None
    drawing = Drawing(model, stage.dtype)
    layers: dict[str, list[ir.Node]] = {}
    for node, name in _linears(model):
        layers.setdefault(name.removesuffix(".weight"), []).append(node)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    if missing := sorted(set(plan.layers) - set(layers)):
        raise BuildError(
            f"{stage.name}: no linear layer of the graph has {missing[0]}.weight; this is a bug, report it"
        )
    if plan.attention and len(plan.attention) != len(attentions):
        raise BuildError(f"{stage.name}: {len(attentions)} attentions in the graph; this is a bug, report it")
    for layer, nodes in layers.items():
        if layer not in plan.layers:
            continue
        kept = FORMATS[plan.layers[layer]]
        if kept.inputs is not None:
            for node in nodes:
                _round_input(drawing, kept.inputs, node, 0, plan.inputs[layer])
        weight = model.graph.initializers[f"{layer}.weight"]
        users = list(weight.uses())
        after = kept.weights.draw(drawing, weight, users[0].node, plan.per_channel)
        for user in users:
            if kept.weights.turned:
                _take_turned(model.graph, user, after)
            else:
                user.node.replace_input_with(user.idx, after)
    for node, sizes in zip(attentions, plan.attention.values(), strict=False):
        for index, amax in enumerate(sizes):
            _round_input(drawing, e4m3.SCALED, node, index, amax)


def _round_input(drawing: Drawing, inputs: Inputs, node: ir.Node, index: int, amax: float) -> None:
    value = node.inputs[index]
    assert value is not None
    node.replace_input_with(index, inputs.draw_input(drawing, value, node, amax))


def _take_turned(graph: ir.Graph, user: Any, weight: ir.Value) -> None:
    """A weight that lies as [in, out] is not turned any more before it is multiplied."""
    if user.node.op_type == "Transpose":
        user.node.outputs[0].replace_all_uses_with(weight)
        graph.remove(user.node, safe=True)
        return
    assert user.node.op_type == "Gemm"
    assert user.node.attributes.get_int("transB") == 1
    user.node.attributes["transB"] = ir.AttrInt64("transB", 0)
    user.node.replace_input_with(user.idx, weight)


def rounded_inputs(model: ir.Model) -> dict[str, tuple[ir.DataType, float]]:
    """What the inputs of layers are rounded to, and their scales, read off a graph, by the layer's weight."""
    found = {}
    for node, weight in _linears(model):
        after = node.inputs[0].producer() if node.inputs[0] is not None else None
        if after is not None and after.op_type == "DequantizeLinear":
            codes = after.inputs[0]
            assert codes is not None
            assert codes.dtype is not None
            before = codes.producer()
            assert before is not None
            found[weight] = codes.dtype, _constant(before.inputs[1])
    return found


def input_scales(model: ir.Model) -> dict[str, float]:
    """The scale of every quantised layer's input, read off a graph, by the layer's weight."""
    return {weight: scale for weight, (_, scale) in rounded_inputs(model).items()}


def attention_scales(model: ir.Model) -> list[list[float]]:
    """The scales of q, k and v of every quantised Attention, in the graph's order."""
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    producers = [[value.producer() for value in node.inputs[:3] if value is not None] for node in nodes]
    return [
        [_constant(node.inputs[1]) for node in each if node is not None]
        for each in producers
        if all(node is not None and node.op_type == "DequantizeLinear" for node in each)
    ]


def _constant(value: ir.Value | None) -> float:
    assert value is not None
    assert value.const_value is not None
    return float(value.const_value.numpy())


def _linears(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Every linear layer with the name of its weight, seen through Transpose, Slice and DequantizeLinear.

    A layer that takes its input in parts is a product for each, of a slice of its weight.
    """
    for node in model.graph:
        if node.op_type not in LINEAR:
            continue
        value = node.inputs[1]
        while value is not None and (producer := value.producer()) is not None:
            value = producer.inputs[0] if producer.op_type in SEEN_THROUGH else None
        if value is not None and value.name is not None and value.name in model.graph.initializers:
            yield node, value.name
