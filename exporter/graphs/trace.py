"""A stage becomes an ONNX graph without weights: torch.export on fake tensors, then torch.onnx.

The parameters keep their names and hold nothing; `weights` gives them their bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim

from flux_trt.exporter.families.stage import Stage, skeleton
from flux_trt.exporter.graphs.rewrite import rewrite
from flux_trt.runtime.bundle.manifest import Tensor
from flux_trt.runtime.errors import BuildError

OPSET = 23
TORCH = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "uint8": torch.uint8}


def trace(stage: Stage) -> ir.Model:
    """The stage as an ONNX model, opset 23, with named inputs, outputs and dims.

    Raises:
        BuildError: torch could not trace the module.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module = _faked(skeleton(stage), mode)
    with mode:
        example = tuple(
            torch.zeros(_sizes(stage, tensor), dtype=TORCH[tensor.dtype]) for tensor in stage.inputs
        )
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example, dynamic_shapes=_dynamic(stage), strict=False)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                input_names=[tensor.name for tensor in stage.inputs],
                output_names=[tensor.name for tensor in stage.outputs],
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as fault:
        raise BuildError(f"cannot trace {stage.name}: {str(fault).splitlines()[0]}") from fault
    assert exported is not None
    model = exported.model
    model.graph.name = stage.name
    _forget_fakes(model)
    rewrite(model)
    _name_dims(model, stage)
    return model


def _faked(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The module with fake parameters on the CPU, where the meta device would clash with its buffers."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                with mode:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                owner._parameters[name] = nn.Parameter(fake, requires_grad=False)
    return module


def _sizes(stage: Stage, tensor: Tensor) -> list[int]:
    return [dim if isinstance(dim, int) else stage.dims[dim].example for dim in tensor.dims]


def _dynamic(stage: Stage) -> list[dict[int, Any]]:
    """For every input, its dims that vary, as torch.export wants to know them."""
    plain = {name: Dim(name, max=dim.most) for name, dim in stage.dims.items() if not (dim.of or dim.free)}
    dims: dict[str, Any] = {
        name: Dim.AUTO if dim.free else dim.times * plain[dim.of] if dim.of else plain[name]
        for name, dim in stage.dims.items()
    }
    return [{i: dims[d] for i, d in enumerate(t.dims) if isinstance(d, str)} for t in stage.inputs]


def _forget_fakes(model: ir.Model) -> None:
    """Leave the parameters without a value; only true constants keep theirs."""
    for value in model.graph.initializers.values():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            value.const_value = None


def _name_dims(model: ir.Model, stage: Stage) -> None:
    """Give inputs and outputs the contract's dims and their rules; drop the tracer's symbols in between."""
    ends = [*zip(model.graph.inputs, stage.inputs, strict=True)]
    ends += [*zip(model.graph.outputs, stage.outputs, strict=True)]
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and any(not isinstance(dim, int) for dim in value.shape):
                value.shape = None
    model.metadata_props.update({f"dim {name}": dim.rule for name, dim in stage.dims.items() if dim.rule})
    for value, tensor in ends:
        value.name = tensor.name
        value.shape = ir.Shape(tensor.dims)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
