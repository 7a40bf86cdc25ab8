"""A graph that is being quantised: nodes and initializers are added to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

KINDS = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


class Drawing:
    """A traced stage, and the values in it that were rounded already."""

    def __init__(self, model: ir.Model, base: torch.dtype) -> None:
        """`base` is the type of all that is not quantised."""
        self.model, self.graph, self.base = model, model.graph, base
        self._made: dict[Any, ir.Value] = {}

    def once(self, key: Any, make: Callable[[], ir.Value]) -> ir.Value:
        """What was made for `key` before, or now: layers that read the same value share its rounding."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def constant(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """An initializer that is part of the graph's own file."""
        constant = TorchTensor(tensor, name=name)
        kind, shape = ir.TensorType(constant.dtype), ir.Shape(list(tensor.shape))
        value = ir.Value(name=name, type=kind, shape=shape, const_value=constant)
        self.graph.register_initializer(value)
        return value

    def part(self, name: str, kind: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer that gets its bytes later, from the stage's safetensors file."""
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(list(shape)))
        self.graph.initializers[name] = value
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        outputs: Sequence[tuple[str, ir.DataType]],
        before: ir.Node,
        shape: ir.Shape | None = None,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> Sequence[ir.Value]:
        """A node before another; its outputs, of which the first one has `shape`."""
        made = [ir.Value(name=name, type=ir.TensorType(kind)) for name, kind in outputs]
        made[0].shape = shape
        name = f"{outputs[0][0]}_{op}"
        self.graph.insert_before(
            before, [ir.node(op, inputs, attributes or {}, domain=domain, outputs=made, name=name)]
        )
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        return made
