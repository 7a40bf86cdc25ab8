"""A real bundle of hand-made ONNX graphs, so small that its pictures are known in closed form.

Text: `pooled` is the mean id of CLIP, `text` is T5's ids as floats. The conditioner sends the timestep,
guidance and pooled value as modulation. The denoiser's velocity is `rate * latents + drift(modulation)`, and
the decoder paints the mean latent of a token over its patch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_variations
import tokenizers
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from tokenizers import models, pre_tokenizers, processors

from flux_trt.runtime.bundle import manifest

CHANNELS, TEXT, PATCH, HEAD = 16, 6, 16, 8
RATE = -0.5
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}

RUNS = {
    "clip": "prompt",
    "t5": "prompt",
    "denoiser": "step",
    "vae_decoder": "picture",
}
DYNAMIC = {"kind": "exponential", "tokens": [256, 4096], "mu": [0.5, 1.15], "round": None}

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "blue", "circle", "square", "left"]

Dims = list[int | str]
Signature = dict[str, tuple[str, Dims]]

CLIP: tuple[Signature, Signature] = (
    {"ids": ("int64", ["batch", TEXT])},
    {"pooled": ("float32", ["batch", 1])},
)
T5: tuple[Signature, Signature] = (
    {"ids": ("int64", ["batch", "text"])},
    {"text": ("float32", ["batch", "text", 1])},
)
DENOISER: tuple[Signature, Signature] = (
    {
        "latents": ("float32", ["batch", "tokens", CHANNELS]),
        "dt": ("float32", ["batch", "tokens", 1]),
        "context": ("float32", ["batch", "text", 1]),
        "modulation": ("float32", ["batch", 3, 1]),
        "cos": ("float32", ["sequence", HEAD // 2]),
        "sin": ("float32", ["sequence", HEAD // 2]),
    },
    {
        "next_latents": ("float32", ["batch", "tokens", CHANNELS]),
        "velocity": ("float32", ["batch", "tokens", CHANNELS]),
    },
)
DECODER: tuple[Signature, Signature] = (
    {"latents": ("float32", ["batch", "h", "w", CHANNELS])},
    {"image": ("uint8", ["batch", "height", "width", 3])},
)


def conditioner(guidance: bool) -> tuple[Signature, Signature]:
    inputs: Signature = {
        "timesteps": ("float32", ["steps"]),
        "pooled": ("float32", ["batch", 1]),
        "text": ("float32", ["batch", "text", 1]),
    }
    if guidance:
        inputs["guidance"] = ("float32", ["batch"])
    return inputs, {
        "modulation": ("float32", ["steps", "batch", 3, 1]),
        "context": ("float32", ["batch", "text", 1]),
    }


def build(
    root: Path,
    *,
    guidance: bool = True,
    dynamic_shift: bool = True,
    rate: float = RATE,
    half: Collection[str] = (),
    apart: bool = False,
    mask: bool = False,
    patch_manifest: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write a bundle to `root`.

    Args:
        root: the folder to be.
        guidance: whether the conditioner has that input.
        dynamic_shift: whether the schedule depends on the size.
        rate: of the denoiser.
        half: of context, cos and sin, those that are float16.
        apart: make the conditioner two stages: `time`, and `text_projection` that takes what it gives.
        mask: let T5 take the mask, too: -1 where there is padding.
        patch_manifest: may edit the manifest's fields before it is written.
    """
    (root / "tokenizers").mkdir(parents=True)
    signatures = {
        "clip": CLIP,
        "t5": T5,
        "conditioner": conditioner(guidance),
        "denoiser": DENOISER,
        "vae_decoder": DECODER,
    }
    nodes = {
        "clip": _clip(),
        "t5": _t5(),
        "conditioner": _conditioner(guidance),
        "denoiser": _denoiser(rate),
        "vae_decoder": _decoder(),
    }
    if mask:
        signatures["t5"] = {**T5[0], "mask": T5[0]["ids"]}, T5[1]
        nodes["t5"] = tiny_variations.masked()
    if apart:
        tiny_variations.part(signatures, nodes)
    tiny_variations.halve(signatures, nodes, half)
    stages = {}
    for name, (inputs, outputs) in signatures.items():
        _save(root / f"{name}.onnx", *nodes[name], inputs, outputs)
        weights = ["denoiser.safetensors"] if name == "denoiser" else []
        stages[name] = {
            "graph": f"{name}.onnx",
            "weights": weights,
            "precision": "fp32",
            "inputs": _tensors(inputs),
            "outputs": _tensors(outputs),
            "runs": RUNS.get(name, "schedule"),
            "key": name,
        }
    for name in ("clip", "t5"):
        tokenizer().save(str(root / "tokenizers" / f"{name}.json"))
    fields = {
        "family": "FLUX.1",
        "variant": "tiny",
        "tasks": ["generate"],
        "encoders": [{"stage": name, "tokenizer": name} for name in ("clip", "t5")],
        "tokenizers": {
            name: {
                "file": f"tokenizers/{name}.json",
                "prefix": "",
                "suffix": "",
                "pad": {"id": 0, "token": "<pad>", "side": "right", "multiple": TEXT, "most": TEXT},
                "mask": False,
            }
            for name in ("clip", "t5")
        },
        "model": {
            "patch": PATCH,
            "positions": {
                "axes": [2, 2, 4],
                "theta": 10000.0,
                "text_axis": None,
                "grid_axes": [1, 2],
                "grid_scale": 1.0,
                "reference": {"axis": 0, "start": 1, "stride": 1},
            },
            "noise": {"channels": CHANNELS // 4, "cell": 2, "order": "chw", "round": None},
            "references": None,
        },
        "schedule": DYNAMIC if dynamic_shift else {"kind": "constant", "shift": 3.0, "round": None},
        "guidance": {
            "kind": "embedded" if guidance else "none",
            "default": 3.5 if guidance else None,
            "negative": None,
        },
        "sizes": {"smallest": 32, "largest": 128},
        "defaults": {"width": 48, "height": 32, "steps": 3},
        "stages": stages,
        "files": files(root),
        "provenance": {
            "checkpoint": "tests",
            "beside": {},
            "layout": "hand-made",
            "sources": [],
            "tool": "tests",
            "packages": {},
            "created": "2026-01-01T00:00:00Z",
        },
    }
    if patch_manifest:
        patch_manifest(fields)
    (root / manifest.NAME).write_text(manifest.Manifest.model_validate(fields).dumps(), encoding="utf-8")
    return root


def add_glue(root: Path) -> Path:
    """Give a bundle that `build` has written the glue that every export has."""
    from flux_trt.exporter.graphs.glue import write_glue

    glue, _ = write_glue(root, CHANNELS)
    fields = json.loads((root / manifest.NAME).read_text())
    fields["glue"] = {name: stage.model_dump() for name, stage in glue.items()}
    fields["files"] = files(root)
    (root / manifest.NAME).write_text(manifest.Manifest.model_validate(fields).dumps(), encoding="utf-8")
    return root


def files(root: Path) -> dict[str, Any]:
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != manifest.NAME]
    return {
        path.relative_to(root).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }


def tokenizer() -> tokenizers.Tokenizer:
    """One id per word, <start> ... <end> around."""
    made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return made


def velocity_drift(timestep: float, guidance: float, pooled: float) -> float:
    """What the conditioner and denoiser add to `rate * latents`."""
    return timestep + 0.125 * guidance + 0.0625 * pooled


def _tensors(signature: Signature) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "dims": dims} for name, (dtype, dims) in signature.items()]


def _save(
    path: Path, nodes: list[Any], weights: dict[str, Any], inputs: Signature, outputs: Signature
) -> None:
    def infos(signature: Signature) -> list[Any]:
        return [helper.make_tensor_value_info(n, TYPES[t], dims) for n, (t, dims) in signature.items()]

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    if path.stem == "denoiser":
        _send_floats_outside(initializers, path.with_suffix(".safetensors"))
    graph = helper.make_graph(nodes, path.stem, infos(inputs), infos(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def _send_floats_outside(initializers: list[Any], path: Path) -> None:
    """Move the floats into a file of their own, as an exporter does with weights."""
    with path.open("wb") as file:
        for tensor in initializers:
            if tensor.data_type == TensorProto.FLOAT:
                external_data_helper.set_external_data(
                    tensor, path.name, offset=file.tell(), length=len(tensor.raw_data)
                )
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")


Nodes = tuple[list[Any], dict[str, Any]]


def _clip() -> Nodes:
    return [
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "last"], ["pooled"], keepdims=1),
    ], {"last": np.array([1])}


def _t5() -> Nodes:
    return [
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["text"]),
    ], {"last": np.array([2])}


def _conditioner(guidance: bool) -> Nodes:
    """modulation[s, b] = (timestep[s], guidance[b], pooled[b]); context = text."""
    nodes = [
        helper.make_node("Identity", ["text"], ["context"]),
        helper.make_node("Shape", ["pooled"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["timesteps"], ["steps"]),
        helper.make_node("Concat", ["steps", "batch", "ones"], ["full"], axis=0),
        helper.make_node("Reshape", ["timesteps", "column"], ["t4"]),
        helper.make_node("Expand", ["t4", "full"], ["t"]),
        helper.make_node("Reshape", ["pooled", "row"], ["p4"]),
        helper.make_node("Expand", ["p4", "full"], ["p"]),
        helper.make_node("Reshape", ["guidance" if guidance else "nothing", "row"], ["g4"]),
        helper.make_node("Expand", ["g4", "full"], ["g"]),
        helper.make_node("Concat", ["t", "g", "p"], ["modulation"], axis=2),
    ]
    weights = {
        "ones": np.array([1, 1]),
        "column": np.array([-1, 1, 1, 1]),
        "row": np.array([1, -1, 1, 1]),
    }
    if not guidance:
        weights["nothing"] = np.zeros(1, np.float32)
    return nodes, weights


def _denoiser(rate: float) -> Nodes:
    """velocity = rate * latents + weights . modulation; context, cos and sin enter with weight zero."""
    nodes = [
        helper.make_node("Mul", ["latents", "rate"], ["decay"]),
        helper.make_node("Mul", ["modulation", "shares"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "one"], ["drift"], keepdims=1),
        helper.make_node("Add", ["decay", "drift"], ["driven"]),
        helper.make_node("ReduceSum", ["context", "all3"], ["c"], keepdims=1),
        helper.make_node("Concat", ["cos", "sin"], ["tables"], axis=1),
        helper.make_node("ReduceSum", ["tables", "all2"], ["r"], keepdims=1),
        helper.make_node("Add", ["c", "r"], ["unused"]),
        helper.make_node("Mul", ["unused", "zero"], ["silent"]),
        helper.make_node("Add", ["driven", "silent"], ["velocity"]),
        helper.make_node("Mul", ["dt", "velocity"], ["change"]),
        helper.make_node("Add", ["latents", "change"], ["next_latents"]),
    ]
    return nodes, {
        "rate": np.float32(rate),
        "shares": np.array([[1.0], [0.125], [0.0625]], np.float32),
        "zero": np.float32(0),
        "one": np.array([1]),
        "all2": np.array([0, 1]),
        "all3": np.array([0, 1, 2]),
    }


def _decoder() -> Nodes:
    """Every patch has the grey 128 + 32 * mean(token)."""
    nodes = [
        helper.make_node("ReduceMean", ["latents", "last"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "grey"], ["value"]),
        helper.make_node("Clip", ["value", "black", "white"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["byte"], to=TensorProto.UINT8),
        helper.make_node("Unsqueeze", ["byte", "inner"], ["blocks"]),
        helper.make_node("Expand", ["blocks", "patch"], ["wide"]),
        helper.make_node("Shape", ["latents"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["latents"], ["hw"], start=1, end=3),
        helper.make_node("Mul", ["hw", "side"], ["pixels"]),
        helper.make_node("Concat", ["batch", "pixels", "three"], ["shape"], axis=0),
        helper.make_node("Reshape", ["wide", "shape"], ["image"]),
    ]
    return nodes, {
        "last": np.array([3]),
        "gain": np.float32(32),
        "grey": np.float32(128),
        "black": np.float32(0),
        "white": np.float32(255),
        "inner": np.array([2, 4]),
        "patch": np.array([1, 1, PATCH, 1, PATCH, 3]),
        "side": np.array([PATCH, PATCH]),
        "three": np.array([3]),
    }
