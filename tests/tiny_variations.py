"""What the tiny bundle may be made of instead: more stages, float16, a masked text encoder."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import TensorProto, helper

Signature = dict[str, tuple[str, list[int | str]]]
Nodes = tuple[list[Any], dict[str, Any]]


def part(signatures: dict[str, tuple[Signature, Signature]], nodes: dict[str, Nodes]) -> None:
    """The conditioner's context comes from a stage of its own, which takes something that `time` gives."""
    inputs, outputs = signatures.pop("conditioner")
    made, weights = nodes.pop("conditioner")
    timed = {name: each for name, each in outputs.items() if name != "context"} | {
        "ready": ("float32", ["steps"])
    }
    signatures["text_projection"] = (
        {"text": inputs["text"], "ready": timed["ready"]},
        {"context": outputs["context"]},
    )
    nodes["text_projection"] = (
        [
            helper.make_node("ReduceSum", ["ready"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["text", "nothing"], ["context"]),
        ],
        {"zero": np.float32(0)},
    )
    signatures["time"] = {name: each for name, each in inputs.items() if name != "text"}, timed
    nodes["time"] = [*made[1:], helper.make_node("Identity", ["timesteps"], ["ready"])], weights


def halve(
    signatures: dict[str, tuple[Signature, Signature]], nodes: dict[str, Nodes], half: Collection[str]
) -> None:
    """Give and take `half` in float16."""
    taken, inside = signatures["denoiser"][0], nodes["denoiser"][0]
    signatures["denoiser"] = (
        {name: ("float16" if name in half else dtype, dims) for name, (dtype, dims) in taken.items()},
        signatures["denoiser"][1],
    )
    for node in inside:
        node.input[:] = [f"{name}32" if name in half else name for name in node.input]
    for name in half:
        inside.insert(0, helper.make_node("Cast", [name], [f"{name}32"], to=TensorProto.FLOAT))
    if "context" in half:
        given = signatures["conditioner"][1]
        signatures["conditioner"] = (
            signatures["conditioner"][0],
            given | {"context": ("float16", given["context"][1])},
        )
        nodes["conditioner"][0][0] = helper.make_node("Cast", ["text"], ["context"], to=TensorProto.FLOAT16)


def masked() -> Nodes:
    """text = ids where mask, else -1."""
    return [
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.BOOL),
        helper.make_node("Where", ["real", "ids", "none"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["text"]),
    ], {"last": np.array([2]), "none": np.array(-1)}
