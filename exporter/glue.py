"""Glue graphs: the loop's arithmetic that is not a model's, as tiny ONNX graphs that any backend runs.

`cfg` is true classifier-free guidance with the Euler step behind it, as in diffusers' FluxPipeline:

    next_latents = latents + dt * (negative + scale * (velocity - negative))
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from flux_trt.exporter.folder import digest
from flux_trt.exporter.trace import OPSET
from flux_trt.runtime import manifest
from flux_trt.runtime.manifest import File, GlueName, Tensor

IR_VERSION = 10


def write_glue(folder: Path, channels: int) -> tuple[dict[GlueName, manifest.Stage], dict[str, File]]:
    """Write every glue graph into the bundle `folder`.

    Args:
        folder: of the bundle to be.
        channels: of a latent token.

    Returns:
        The manifest's entries, and the files.
    """
    inputs, outputs, nodes = _cfg(channels)
    path = folder / "glue-cfg.onnx"
    graph = ir.Graph(inputs, outputs, nodes=nodes, name="cfg", opset_imports={"": OPSET})
    ir.save(ir.Model(graph, ir_version=IR_VERSION), path)
    file = digest(path)
    record = manifest.Stage(
        graph=path.name,
        weights=[],
        precision="fp32",
        inputs=[_tensor(value) for value in inputs],
        outputs=[_tensor(value) for value in outputs],
        key=file.sha256,
    )
    return {"cfg": record}, {path.name: file}


def _cfg(channels: int) -> tuple[list[ir.Value], list[ir.Value], list[ir.Node]]:
    latents, velocity, negative = (
        _value(name, "batch", "tokens", channels) for name in ("latents", "velocity", "negative")
    )
    dt, scale = _value("dt", "batch", "tokens", 1), _value("scale", "batch", 1, 1)
    difference = ir.node("Sub", [velocity, negative])
    scaled = ir.node("Mul", [difference.outputs[0], scale])
    guided = ir.node("Add", [negative, scaled.outputs[0]])
    change = ir.node("Mul", [dt, guided.outputs[0]])
    step = ir.node(
        "Add", [latents, change.outputs[0]], outputs=[_value("next_latents", *latents.shape or ())]
    )
    nodes = [difference, scaled, guided, change, step]
    return [latents, dt, velocity, negative, scale], list(step.outputs), nodes


def _value(name: str, *dims: int | str | ir.SymbolicDim) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


def _tensor(value: ir.Value) -> Tensor:
    assert value.name is not None
    assert value.shape is not None
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return Tensor(name=value.name, dtype="float32", dims=dims)
