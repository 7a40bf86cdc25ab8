"""The shape of every value of an ONNX graph, once the graph's inputs have numbers for dims.

onnx infers shapes node by node; what it lacks are the values of the small integer tensors that shapes are
computed from (Shape, Slice, Concat, ... into Reshape). Those are computed here, with onnx's reference
evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, TypeProto, helper, inliner, numpy_helper
from onnx.defs import get_schema
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_node_outputs

from flux_trt.bench.errors import BenchError

SMALL = 1024  # elements; larger values are no shapes
UNINFERRED = {"GroupNormalization"}  # onnx has no inference for it; its output is like its first input
INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
Array = npt.NDArray[np.generic]


class Shapes:
    """A graph with functions inlined, and the shape and type of each value."""

    def __init__(self, path: Path, inputs: Mapping[str, tuple[int, ...]]) -> None:
        """Walk the graph; no weight is read.

        Args:
            path: of the ONNX file.
            inputs: shape of each input.

        Raises:
            BenchError: a value whose shape cannot be told.
        """
        model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
        self.graph = model.graph
        self.weights = {each.name: each for each in model.graph.initializer}
        self.types: dict[str, TypeProto] = {}
        self._path, self._opset, self._ir = path, list(model.opset_import), model.ir_version
        self._known: dict[str, TensorProto] = {}
        for each in model.graph.input:
            kind = each.type.tensor_type.elem_type
            self.types[each.name] = helper.make_tensor_type_proto(kind, inputs[each.name])
        for name, weight in self.weights.items():
            self.types[name] = helper.make_tensor_type_proto(weight.data_type, weight.dims)
            inside = weight.data_location != TensorProto.EXTERNAL
            if inside and np.prod(weight.dims, dtype=int) <= SMALL:
                self._known[name] = weight
        for node in model.graph.node:
            self._infer(node)

    def dims(self, name: str) -> tuple[int, ...]:
        """Of a value."""
        return tuple(dim.dim_value for dim in self.types[name].tensor_type.shape.dim)

    def elements(self, name: str) -> int:
        """Of a value."""
        return int(np.prod(self.dims(name), dtype=np.int64))

    def nbytes(self, name: str) -> int:
        """Of a value; types of less than a byte are counted as packed."""
        kind = self.types[name].tensor_type.elem_type
        bits = 4 if kind in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1) else 8
        size = np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
        return self.elements(name) * size * bits // 8

    def _infer(self, node: onnx.NodeProto) -> None:
        version = next(each.version for each in self._opset if each.domain == node.domain)
        given = [name for name in node.input if name]
        found = infer_node_outputs(
            get_schema(node.op_type, version, node.domain),
            node,
            {name: self.types[name] for name in given},
            {name: self._known[name] for name in given if name in self._known},
            opset_imports=self._opset,
            ir_version=self._ir,
        )
        if node.op_type == "Reshape" and node.input[1] in self._known:
            found[node.output[0]] = self._reshaped(node)  # onnx leaves -1 open where allowzero is 1
        elif node.op_type in UNINFERRED:
            found[node.output[0]] = self.types[node.input[0]]
        for name in filter(None, node.output):
            kind = found.get(name)
            if kind is None or not _whole(kind):
                raise BenchError(
                    f"{self._path.name}: the shape of {name} ({node.op_type}) cannot be told; "
                    f"its FLOPs cannot be counted"
                )
        self.types |= found
        self._evaluate(node, given)

    def _reshaped(self, node: onnx.NodeProto) -> TypeProto:
        """-1 is what is left; a 0 is the input's dim (unless allowzero, which a graph with a 0 has not)."""
        given = self.dims(node.input[0])
        wanted = [int(dim) for dim in numpy_helper.to_array(self._known[node.input[1]])]
        dims = [given[index] if dim == 0 else dim for index, dim in enumerate(wanted)]
        rest = self.elements(node.input[0]) // abs(int(np.prod(dims, dtype=np.int64)))
        kind = self.types[node.input[0]].tensor_type.elem_type
        return helper.make_tensor_type_proto(kind, [rest if dim == -1 else dim for dim in dims])

    def _evaluate(self, node: onnx.NodeProto, given: list[str]) -> None:
        """The values of a node that computes a shape from known ones."""
        made = [name for name in node.output if name]
        kinds = {self.types[name].tensor_type.elem_type for name in made}
        if max(map(self.elements, made)) > SMALL or not (kinds <= INTEGERS or node.op_type == "Constant"):
            return
        if node.op_type == "Shape":
            cut = {each.name: each.i for each in node.attribute}
            dims = self.dims(given[0])[cut.get("start") : cut.get("end")]
            values: list[Array] = [np.array(dims, np.int64)]
        elif all(name in self._known for name in given):
            feed = {name: numpy_helper.to_array(self._known[name]) for name in given}
            opsets = {each.domain: each.version for each in self._opset}
            values = cast(list[Array], ReferenceEvaluator(node, opsets=opsets).run(None, feed))
        else:
            return
        for name, value in zip(node.output, values, strict=False):
            self._known[name] = numpy_helper.from_array(np.asarray(value), name)


def _whole(kind: TypeProto) -> bool:
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)
