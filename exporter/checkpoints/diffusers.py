"""A diffusers folder, as `save_pretrained` writes it and the hub serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.defaults import completed
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo, read_header
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.errors import CheckpointError

PARTS = {"transformer": "transformer", "vae": "vae", "clip": "text_encoder", "t5": "text_encoder_2"}
"""Part -> its folder."""
TOKENIZERS = {"clip": "tokenizer", "t5": "tokenizer_2"}
STEMS = ("diffusion_pytorch_model", "model")


def read_folder(source: str, folder: Path, faults: Faults) -> Checkpoint:
    """All parts of a folder with `model_index.json`, or with text encoders.

    A part with a fault is left out where faults are collected.

    Raises:
        CheckpointError: neither is there, or a part that is not whole.
    """
    if not (folder / "model_index.json").is_file() and not (folder / "text_encoder").is_dir():
        raise CheckpointError(f"{folder} has no model_index.json; give the folder that holds it")
    index: dict[str, Any] = {}
    parts: dict[str, Part] = {}
    scheduler, schedule = folder / "scheduler" / "scheduler_config.json", None
    with faults.met():
        index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    for name, sub in PARTS.items():
        with faults.met():
            if (folder / sub).is_dir():
                parts[name] = read_part(name, folder / sub)
    with faults.met():
        schedule = completed("scheduler", _json(scheduler)) if scheduler.is_file() else None
    return Checkpoint(
        source=source,
        layout="diffusers",
        parts=parts,
        tokenizers={name: folder / sub for name, sub in TOKENIZERS.items() if (folder / sub).is_dir()},
        pipeline=index.get("_class_name"),
        scheduler=schedule,
    )


def read_part(name: str, folder: Path) -> Part:
    """A diffusers or transformers model folder: config.json and one or several safetensors files.

    Raises:
        CheckpointError: it is not whole, or its weights are pickled.
    """
    config = completed(name, _json(folder / "config.json"))
    tensors: dict[str, TensorInfo] = {}
    for file in _files(folder):
        tensors |= read_header(file)
    return Part(tensors, config, "diffusers")


def _files(folder: Path) -> list[Path]:
    """The weights' files: the shards that an index names, or the one file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(_json(indexes[0]).get("weight_map", {}).values()))
        return [folder / Path(name).name for name in names]
    found = [path for stem in STEMS if (path := folder / f"{stem}.safetensors").is_file()]
    if not found:
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]), None)
        said = f"{pickled.name} is a pickle and is not loaded" if pickled else "there is no .safetensors file"
        raise CheckpointError(f"{folder}: {said}; save the model with safe_serialization=True")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy or download the checkpoint again") from None
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"cannot read {path} ({fault}); copy or download it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; copy or download it again")
    return found
