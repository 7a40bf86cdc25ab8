"""A diffusers folder, as `save_pretrained` writes it and the hub serves it, or of the transformer alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.defaults import completed
from flux_trt.exporter.checkpoints.foreign import foreign_names
from flux_trt.exporter.checkpoints.layout import naming
from flux_trt.exporter.checkpoints.quantised.decode import decoded
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo, read_header, read_metadata
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.bundle import plain
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import AGAIN

PARTS = {"transformer": "transformer", "vae": "vae", "clip": "text_encoder", "t5": "text_encoder_2"}
"""Part -> its folder. A language model lies where CLIP does, and is told by its tensors."""
TEXT = "text"
TOKENIZERS = {"clip": "tokenizer", "t5": "tokenizer_2", TEXT: "tokenizer"}
INDEXES = ("model_index.json", "modular_model_index.json")
"""Of a pipeline, or of one that is put together of blocks."""
STEMS = ("diffusion_pytorch_model", "model")
TRANSFORMERS = ("FluxTransformer2DModel", "Flux2Transformer2DModel", "Flux3Transformer2DModel")


def read_folder(source: str, folder: Path, faults: Faults) -> Checkpoint:
    """All parts that a folder has; what they lack is brought by options.

    A part with a fault is left out where faults are collected.

    Raises:
        CheckpointError: nothing of a diffusers folder is there, or a part that is not whole.
    """
    if _is_transformer(folder):
        return Checkpoint(source, "diffusers", {"transformer": read_part("transformer", folder)})
    if not any((folder / name).exists() for name in (*INDEXES, *PARTS.values())):
        loose = sorted(path.name for path in folder.glob("*.safetensors"))
        hint = f" (of its files {loose[0]}, for example, can be given by itself)" if loose else ""
        raise CheckpointError(f"{folder} has no model_index.json{hint}; give the folder that holds it")
    index: dict[str, Any] = {}
    parts: dict[str, Part] = {}
    path, scheduler = folder / "scheduler" / "scheduler_config.json", None
    with faults.met():
        there = [path for path in (folder / name for name in INDEXES) if path.is_file()]
        index = read_json(there[0]) if there else {}
    for name, sub in PARTS.items():
        with faults.met():
            if (folder / sub).is_dir():
                part = read_part(name, folder / sub)
                parts[_meant(name, part)] = part
    with faults.met():
        scheduler = read_scheduler(path) if path.is_file() else None
    return Checkpoint(
        source=source,
        layout="diffusers",
        parts=parts,
        tokenizers={name: path for name, path in read_tokenizers(folder).items() if name != _other(parts)},
        index=index,
        scheduler=scheduler,
        notes=_notes(folder),
    )


def read_part(name: str, folder: Path) -> Part:
    """A diffusers or transformers model folder: config.json and one or several safetensors files.

    Raises:
        CheckpointError: it is not whole, it is another model, or its weights are pickled.
    """
    config = read_json(folder / "config.json")
    tensors: dict[str, TensorInfo] = {}
    files = _files(folder)
    for file in files:
        tensors |= read_header(file)
    config = completed(TEXT if name == "clip" and naming(TEXT, tensors) else name, config)
    if name == "transformer" and (what := foreign_names(tensors)) is not None:
        raise CheckpointError(f"{folder} is {what}")
    return Part(decoded(tensors, read_metadata(*files), config), config, "diffusers", folder)


def _other(parts: Mapping[str, Part]) -> str:
    """Of the two that may lie in `tokenizer/`, the encoder that is not there."""
    return "clip" if TEXT in parts else TEXT if "clip" in parts else ""


def _meant(name: str, part: Part) -> str:
    """The part that a folder holds."""
    return TEXT if name == "clip" and naming(TEXT, part.tensors) else name


def read_tokenizers(folder: Path) -> dict[str, Path]:
    """The tokenizers' folders that are there."""
    return {name: folder / sub for name, sub in TOKENIZERS.items() if (folder / sub).is_dir()}


def read_scheduler(path: Path) -> dict[str, Any]:
    """A `scheduler_config.json`, whole.

    Raises:
        CheckpointError: not there, or no JSON object.
    """
    return completed("scheduler", read_json(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: not there, or something else.
    """
    try:
        found = json.loads(plain.text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy or download the checkpoint again") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(f"cannot read {path} ({fault}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; {AGAIN}")
    return found


def _is_transformer(folder: Path) -> bool:
    """Whether the folder is a transformer's own, as some repositories have it at their root."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("_class_name") in TRANSFORMERS


def _files(folder: Path) -> list[Path]:
    """The weights' files: the shards that an index names, or the one file, also under a variant's name."""
    plain = [folder / f"{stem}.safetensors" for stem in STEMS]
    indexes = [folder / f"{stem}.safetensors.index.json" for stem in STEMS]
    named = sorted({*folder.glob("*.safetensors.index.*.json"), *folder.glob("*.*.safetensors.index.json")})
    for found in (indexes, plain, named):
        there = [path for path in found if path.is_file()]
        if there:
            return _shards(there[0]) if ".index." in there[0].name else there[:1]
    variants = sorted({path for stem in STEMS for path in folder.glob(f"{stem}.*.safetensors")})
    if len(variants) == 1:
        return variants
    if variants:
        names = ", ".join(path.name for path in variants)
        raise CheckpointError(f"{folder} has several weights ({names}); leave the ones that you mean")
    pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]), None)
    said = f"{pickled.name} is a pickle and is not loaded" if pickled else "there is no .safetensors file"
    raise CheckpointError(f"{folder}: {said}; save the model with safe_serialization=True")


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map", {})
    if not isinstance(listed, dict) or not all(
        isinstance(name, str) and name.isprintable() and Path(name).name for name in listed.values()
    ):
        raise CheckpointError(f"{index} does not name the files of its tensors; {AGAIN}")
    return [index.parent / Path(name).name for name in sorted(set(listed.values()))]


def _notes(folder: Path) -> tuple[str, ...]:
    """Files with weights beside the parts, which are not read."""
    beside = sorted(path.name for path in folder.glob("*.safetensors"))
    loras = [name for name in beside if "lora" in name.lower()]
    others = [name for name in beside if name not in loras]
    notes = [f"{', '.join(loras)}: a LoRA beside the weights is not used; --lora merges it"] if loras else []
    if others:
        notes.append(f"{', '.join(others)}: not read; the parts' own folders are")
    return tuple(notes)
