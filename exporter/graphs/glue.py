"""Glue graphs: the loop's arithmetic that is not a model's, as tiny ONNX graphs that any backend runs.

A pair is two batches of one tensor, one after the other: [2, batch, tokens, channels]. The denoiser runs it
as one batch of twice the size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from flux_trt.exporter.graphs.trace import OPSET
from flux_trt.exporter.written import write_file
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File, GlueName, Tensor

IR_VERSION = 10
BATCH = ("batch", "tokens")
PAIR = (2, "batch", "tokens")

Graph = tuple[list[ir.Value], list[ir.Node], list[ir.Value]]
"""Inputs, nodes and initializers; the last node's output is the graph's."""


def write_glue(folder: Path, channels: int) -> tuple[dict[GlueName, manifest.Stage], dict[str, File]]:
    """Write every glue graph into the bundle `folder`.

    Args:
        folder: of the bundle to be.
        channels: of a latent token.

    Returns:
        The manifest's entries, and the files.
    """
    stages: dict[GlueName, manifest.Stage] = {}
    files: dict[str, File] = {}
    for name, make in GLUE.items():
        inputs, nodes, constants = make(channels)
        outputs = list(nodes[-1].outputs)
        path = folder / f"glue-{name}.onnx"
        opsets = {"": OPSET}
        graph = ir.Graph(
            inputs, outputs, nodes=nodes, initializers=constants, name=name, opset_imports=opsets
        )
        model = ir.Model(graph, ir_version=IR_VERSION)
        files[path.name] = write_file(path, ir.to_proto(model).SerializeToString())
        stages[name] = manifest.Stage(
            graph=path.name,
            weights=[],
            precision="fp32",
            inputs=[_tensor(value) for value in inputs],
            outputs=[_tensor(value) for value in outputs],
            key=files[path.name].sha256,
        )
    return stages, files


def _cfg(channels: int) -> Graph:
    """True classifier-free guidance and the Euler step, as in diffusers' FluxPipeline.

    velocity holds that of the prompt, then of the negative; both halves of the latents move alike:

        next_latents = latents + dt x (negative + scale x (positive - negative))
    """
    latents, velocity = _value("latents", *PAIR, channels), _value("velocity", *PAIR, channels)
    dt, scale = _value("dt", *PAIR, 1), _value("scale", 1)
    split = ir.node("Split", [velocity], {"axis": 0, "num_outputs": 2}, num_outputs=2)
    positive, negative = split.outputs
    difference = ir.node("Sub", [positive, negative])
    scaled = ir.node("Mul", [difference.outputs[0], scale])
    guided = ir.node("Add", [negative, scaled.outputs[0]])
    step, change = _step(latents, dt, guided.outputs[0], _value("next_latents", *PAIR, channels))
    return [latents, dt, velocity, scale], [split, difference, scaled, guided, change, step], []


def _mix(channels: int) -> Graph:
    """What FlowEdit shows the denoiser (Kulikov et al. 2024, algorithm 1): z_src, then z_tar.

    z_src = (1 - sigma) source + sigma x noise;  z_tar = latents + z_src - source
    """
    latents, source, noise = (_value(name, *BATCH, channels) for name in ("latents", "source", "noise"))
    sigma = _value("sigma", 1)
    nodes, noised = _noised(source, noise, sigma)
    moved = ir.node("Sub", [noised, source])
    target = ir.node("Add", [latents, moved.outputs[0]])
    axes = _constant("axes", [0])
    rows = [ir.node("Unsqueeze", [value, axes]) for value in (noised, target.outputs[0])]
    pair = ir.node(
        "Concat", [row.outputs[0] for row in rows], {"axis": 0}, outputs=[_value("pair", *PAIR, channels)]
    )
    return [latents, source, noise, sigma], [*nodes, moved, target, *rows, pair], [axes]


def _edit(channels: int) -> Graph:
    """FlowEdit's step: next_latents = latents + dt x (v(z_tar) - v(z_src)); velocity is of `mix`'s pair."""
    latents, velocity = _value("latents", *BATCH, channels), _value("velocity", *PAIR, channels)
    dt = _value("dt", 1)
    split = ir.node("Split", [velocity], {"axis": 0, "num_outputs": 2}, num_outputs=2)
    source, target = split.outputs
    difference = ir.node("Sub", [target, source])
    axes = _constant("axes", [0])
    flat = ir.node("Squeeze", [difference.outputs[0], axes])
    step, change = _step(latents, dt, flat.outputs[0], _value("next_latents", *BATCH, channels))
    return [latents, dt, velocity], [split, difference, flat, change, step], [axes]


def _paste(channels: int) -> Graph:
    """What the mask leaves alone is put back, noised to the step's level (diffusers' FluxInpaintPipeline).

    next_latents = mask x latents + (1 - mask) x ((1 - sigma) source + sigma x noise)
    """
    latents, source, noise, mask = (
        _value(name, *BATCH, channels) for name in ("latents", "source", "noise", "mask")
    )
    sigma, one = _value("sigma", 1), _constant("one", 1.0)
    nodes, noised = _noised(source, noise, sigma)
    rest = ir.node("Sub", [one, mask])
    kept = ir.node("Mul", [rest.outputs[0], noised])
    painted = ir.node("Mul", [mask, latents])
    both = ir.node(
        "Add", [kept.outputs[0], painted.outputs[0]], outputs=[_value("next_latents", *BATCH, channels)]
    )
    return [latents, source, noise, mask, sigma], [*nodes, rest, kept, painted, both], [one]


def _ab2(channels: int) -> Graph:
    """What turns an Euler step into one of second order, from the velocity of the step before.

    next_latents = latents + bend x (velocity - previous); a token with bend 0 stays as it is
    """
    latents, velocity, previous = (
        _value(name, *BATCH, channels) for name in ("latents", "velocity", "previous")
    )
    bend = _value("bend", *BATCH, 1)
    change = ir.node("Sub", [velocity, previous])
    step, scaled = _step(latents, bend, change.outputs[0], _value("next_latents", *BATCH, channels))
    return [latents, bend, velocity, previous], [change, scaled, step], []


GLUE: dict[GlueName, Callable[[int], Graph]] = {
    "cfg": _cfg,
    "mix": _mix,
    "edit": _edit,
    "paste": _paste,
    "ab2": _ab2,
}


def _noised(clean: ir.Value, noise: ir.Value, sigma: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """sigma x noise + (1 - sigma) clean: the straight line of rectified flow."""
    one = ir.node("Constant", [], {"value_float": 1.0})
    rest = ir.node("Sub", [one.outputs[0], sigma])
    faded = ir.node("Mul", [rest.outputs[0], clean])
    added = ir.node("Mul", [sigma, noise])
    line = ir.node("Add", [added.outputs[0], faded.outputs[0]])
    return [one, rest, faded, added, line], line.outputs[0]


def _step(latents: ir.Value, dt: ir.Value, velocity: ir.Value, out: ir.Value) -> tuple[ir.Node, ir.Node]:
    change = ir.node("Mul", [dt, velocity])
    return ir.node("Add", [latents, change.outputs[0]], outputs=[out]), change


def _value(name: str, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


def _constant(name: str, value: float | list[int]) -> ir.Value:
    dtype = ir.DataType.FLOAT if isinstance(value, float) else ir.DataType.INT64
    tensor = ir.tensor(value, dtype=dtype, name=name)
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(dtype)
    return ir.Value(name=name, shape=shape, type=kind, const_value=tensor)


def _tensor(value: ir.Value) -> Tensor:
    assert value.name is not None
    assert value.shape is not None
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return Tensor(name=value.name, dtype="float32", dims=dims)
