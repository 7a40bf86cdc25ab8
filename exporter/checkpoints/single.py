"""A single safetensors or GGUF file: one network, or all of a model behind prefixes."""

from __future__ import annotations

from pathlib import Path

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.foreign import foreign_names
from flux_trt.exporter.checkpoints.layout import naming, spelled, split
from flux_trt.exporter.checkpoints.quantised.decode import decoded
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf, read_gguf
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, read_header, read_metadata
from flux_trt.runtime.errors import CheckpointError

BRINGS = {"vae": "--vae", "clip": "--clip", "t5": "--t5", "text": "--text-encoders"}
"""Part -> the option that takes a file with it."""


def read_parts(path: Path) -> dict[str, Part]:
    """The networks that a file holds, by part; their configs are told by their shapes.

    Raises:
        CheckpointError: no safetensors file, none of a known network, or with tensors of no known part.
    """
    found = _read(path)
    if (what := foreign_names(found)) is not None:
        raise CheckpointError(f"{path} is {what}")
    parts, bare = split(found)
    if not parts:
        few = ", ".join(sorted(found)[:3])
        raise CheckpointError(
            f"{path} holds no FLUX transformer, VAE or text encoder (it has {few}, ...); check the path"
        )
    if bare:
        few = ", ".join(sorted(bare)[:3])
        raise CheckpointError(f"{path}: {len(bare)} tensors are of no known part: {few}; check the file")
    made = {}
    for part, tensors in parts.items():
        whose = naming(part, tensors)
        if whose is None:
            few = ", ".join(sorted(tensors)[:3])
            raise CheckpointError(f"{path}: its {part} is of no known kind (it has {few}, ...)")
        made[part] = Part(spelled(part, tensors), {}, whose)
    return made


def _read(path: Path) -> dict[str, AnyTensor]:
    """All tensors of a safetensors or a GGUF file, decoded."""
    if is_gguf(path):
        return read_gguf(path)[0]
    return decoded(read_header(path), read_metadata(path), {})


def read_file(source: str, path: Path) -> Checkpoint:
    """A file with a transformer, and whatever else is in it.

    Raises:
        CheckpointError: not such a file.
    """
    parts = read_parts(path)
    if "transformer" not in parts:
        held = next(iter(parts))
        raise CheckpointError(
            f"{path} is a {held} without a transformer: give it with {BRINGS[held]}, beside a transformer"
        )
    layout = parts["transformer"].naming if len(parts) == 1 else "all-in-one"
    return Checkpoint(source=source, layout=layout, parts=parts)


def read_one(path: Path, part: str) -> Part:
    """One part of a file.

    Raises:
        CheckpointError: the file does not hold it.
    """
    found = read_parts(path)
    if part not in found:
        raise CheckpointError(f"{path} holds no {part} but {', '.join(found)}; check {BRINGS[part]}")
    return found[part]
