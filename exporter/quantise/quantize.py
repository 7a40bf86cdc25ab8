"""Graph to graph: large linear layers in FP8, as explicit QuantizeLinear and DequantizeLinear.

    x -> QuantizeLinear -> DequantizeLinear -+
                                             MatMul (or Gemm) -> bias and all else as before
    W (E4M3) ------------> DequantizeLinear -+

The types around are as they were: scales have the base type, DequantizeLinear gives it back. Activations have
one static scale, written into the graph; weights have theirs in the safetensors file, where `weights` puts
both. This is the pattern that TensorRT turns into FP8 kernels and that onnxruntime runs as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from flux_trt.exporter.families.stage import Quantisation, Stage
from flux_trt.exporter.quantise.e4m3 import SCALE, scale_of
from flux_trt.runtime.errors import BuildError

LINEAR = ("MatMul", "Gemm")
SEEN_THROUGH = ("Transpose", "Slice", "DequantizeLinear")
"""Between a weight and its product."""
FLOAT8 = ir.DataType.FLOAT8E4M3FN


def quantize(model: ir.Model, stage: Stage) -> None:
    """Put Q/DQ into a traced stage, in place, as its quantisation says.

    Raises:
        BuildError: the graph has not the layers that the quantisation names.
    """
    plan = stage.quantisation
    assert plan is not None
    pass_ = _Pass(model, stage.dtype)
    layers = list(_linears(model))
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    if missing := sorted(plan.weights - {weight for _, weight in layers}):
        raise BuildError(
            f"{stage.name}: no linear layer of the graph has {missing[0]}; this is a bug, report it"
        )
    if plan.attention and len(plan.attention) != len(attentions):
        raise BuildError(f"{stage.name}: {len(attentions)} attentions in the graph; this is a bug, report it")
    for node, weight in layers:
        if weight in plan.weights:
            pass_.round_input(node, 0, plan.inputs[weight.removesuffix(".weight")])
    for weight in dict.fromkeys(weight for _, weight in layers if weight in plan.weights):
        pass_.store_in_e4m3(weight, plan)
    for node, sizes in zip(attentions, plan.attention.values(), strict=False):
        for index, amax in enumerate(sizes):
            pass_.round_input(node, index, amax)


def input_scales(model: ir.Model) -> dict[str, float]:
    """The scale of every quantised layer's input, read off a graph, by the layer's weight."""
    found = {}
    for node, weight in _linears(model):
        rounding = node.inputs[0].producer() if node.inputs[0] is not None else None
        if rounding is not None and rounding.op_type == "DequantizeLinear":
            found[weight] = _constant(rounding.inputs[1])
    return found


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


class _Pass:
    """A model that is being quantised, with the values that were rounded already."""

    def __init__(self, model: ir.Model, dtype: torch.dtype) -> None:
        self.graph, self.dtype = model.graph, dtype
        self._rounded: dict[tuple[str | None, float], ir.Value] = {}

    def round_input(self, node: ir.Node, index: int, amax: float) -> None:
        """Q and DQ before an input of `node`; layers that read the same value share them."""
        value = node.inputs[index]
        assert value is not None
        scale = scale_of(torch.tensor(amax), self.dtype)
        key = value.name, float(scale)
        if key not in self._rounded:
            name = f"{value.name}_e4m3"
            scale_value = self._initializer(f"{name}{SCALE}", scale)
            zero = self._initializer(f"{name}_zero", torch.zeros((), dtype=torch.float8_e4m3fn))
            inside = ir.Value(name=name, type=ir.TensorType(FLOAT8), shape=value.shape)
            after = ir.Value(name=f"{name}_rounded", type=value.type, shape=value.shape)
            q = ir.node("QuantizeLinear", [value, scale_value, zero], outputs=[inside], name=f"{name}_q")
            dq = ir.node("DequantizeLinear", [inside, scale_value, zero], outputs=[after], name=f"{name}_dq")
            self.graph.insert_before(node, [q, dq])
            self._rounded[key] = after
        node.replace_input_with(index, self._rounded[key])

    def store_in_e4m3(self, name: str, plan: Quantisation) -> None:
        """The initializer `name` [out, in] becomes E4M3 with a scale beside it, and a DQ before its users."""
        weight = self.graph.initializers[name]
        users, base = list(weight.uses()), weight.type
        assert weight.shape is not None
        assert base is not None
        after = ir.Value(name=f"{name}_rounded", type=base, shape=weight.shape)
        shape = ir.Shape([weight.shape[0]] if plan.per_channel else [])
        scale = ir.Value(name=name + SCALE, type=base, shape=shape)
        weight.type = ir.TensorType(FLOAT8)
        self.graph.initializers[name + SCALE] = scale
        axis = {"axis": 0} if plan.per_channel else {}
        dq = ir.node("DequantizeLinear", [weight, scale], axis, outputs=[after], name=f"{name}_dq")
        self.graph.insert_before(users[0].node, [dq])
        for user in users:
            user.node.replace_input_with(user.idx, after)

    def _initializer(self, name: str, tensor: torch.Tensor) -> ir.Value:
        constant = TorchTensor(tensor, name=name)
        kind, shape = ir.TensorType(constant.dtype), ir.Shape(list(tensor.shape))
        value = ir.Value(name=name, type=kind, shape=shape, const_value=constant)
        self.graph.register_initializer(value)
        return value
