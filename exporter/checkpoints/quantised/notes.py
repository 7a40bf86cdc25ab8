"""What a file says of its quantised layers, in ComfyUI's words.

A layer has a uint8 tensor `<layer>.comfy_quant` of JSON, `{"format": "float8_e4m3fn", ...}`, or an entry in
the header's `_quantization_metadata`, `{"layers": {<layer>: {"format": ...}}}`, where the names of the layers
may have or lack the prefix that the tensors have.

Source: https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from flux_trt.exporter.checkpoints.quantised.refused import broken
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo

MARK = ".comfy_quant"
METADATA = "_quantization_metadata"
LIMIT = 65536
"""Bytes of a JSON tensor; those in use have less than 300."""

Notes = dict[str, Mapping[str, Any]]
"""Layer -> what is said of it."""


def layer_notes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Notes:
    """What is said of layers that are there.

    Raises:
        CheckpointError: a note that is no JSON object, or one on a layer without a weight.
    """
    notes: Notes = {}
    if (text := metadata.get(METADATA)) is not None and tensors:
        file = next(iter(tensors.values())).file
        said = parsed(text, METADATA, file).get("layers")
        if not isinstance(said, dict) or not all(isinstance(note, dict) for note in said.values()):
            raise broken(file, f"{METADATA} has no layers")
        ends = _ends(name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))
        notes |= {layer: said[name] for name in said for layer in _meant(name, ends)}
    for name, info in tensors.items():
        if name.endswith(MARK):
            layer = name.removesuffix(MARK)
            if f"{layer}.weight" not in tensors:
                raise broken(info.file, f"{name} has no {layer}.weight")
            notes[layer] = read_note(info, name)
    return notes


def read_note(info: TensorInfo, name: str) -> dict[str, Any]:
    """The JSON object in a tensor [bytes] of uint8.

    Raises:
        CheckpointError: something else.
    """
    if info.dtype != torch.uint8 or info.nbytes > LIMIT:
        raise broken(info.file, f"{name} is no JSON in uint8 of at most {LIMIT} bytes")
    return parsed(info.read().numpy().tobytes(), name, info.file)


def parsed(text: str | bytes, what: str, file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: something else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise broken(file, f"{what} is no JSON ({fault})") from None
    if not isinstance(found, dict):
        raise broken(file, f"{what} is no JSON object")
    return found


def _ends(layers: Iterable[str]) -> dict[str, list[str]]:
    """Every name that a layer has when its first words are left out -> the layers."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        words = layer.split(".")
        for start in range(len(words)):
            found.setdefault(".".join(words[start:]), []).append(layer)
    return found


def _meant(name: str, ends: Mapping[str, list[str]]) -> list[str]:
    """The layer that a note means: of that name, with a prefix more or with one less."""
    if name in ends:
        exact = [layer for layer in ends[name] if layer == name]
        return exact or (ends[name] if len(ends[name]) == 1 else [])
    words = name.split(".")
    for start in range(1, len(words)):
        end = ".".join(words[start:])
        if end in ends.get(end, []):
            return [end]
    return []
