"""A checkpoint on disk: its layout, its configs and where every tensor lies. No tensor is read here.

Layouts, told apart by what is inside and never by a file's name:
* `diffusers`: a folder with `model_index.json`, as `save_pretrained` writes and the hub serves;
* `bfl`: one safetensors file with Black Forest Labs' names, optionally with BFL's `ae.safetensors` or a
  diffusers VAE folder beside it, and the text encoders from any diffusers folder;
* a hub id: the diffusers folder of that repository, from the local hub cache or downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flux_trt.exporter.checkpoints.defaults import completed
from flux_trt.exporter.checkpoints.tensorfile import TensorInfo, read_header
from flux_trt.exporter.families.flux1.names import BFL_PREFIXES
from flux_trt.runtime.errors import CheckpointError

MARK = "double_blocks.0.img_attn.qkv.weight"
VAE_MARK = "decoder.mid.block_1.conv1.weight"
PARTS = {"transformer": "transformer", "vae": "vae", "clip": "text_encoder", "t5": "text_encoder_2"}
HUB_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.model", *(f"{p}/*.safetensors" for p in PARTS.values())]


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its tensors, its whole config (of BFL files empty), whose names."""

    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    naming: Literal["diffusers", "bfl"]


@dataclass(frozen=True)
class Checkpoint:
    """All that was found, by part name: transformer, vae, clip, t5; a part that is not there is left out."""

    source: str
    layout: Literal["diffusers", "bfl"]
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    pipeline: str | None = None
    scheduler: Mapping[str, Any] | None = None
    text_encoders: str | None = None
    vae: str | None = None


def open_checkpoint(
    source: str, *, text_encoders: Path | None = None, vae: Path | None = None, revision: str | None = None
) -> Checkpoint:
    """Look at a checkpoint without reading its tensors.

    Args:
        source: a diffusers folder, a BFL safetensors file, or a hub id such as `owner/name`.
        text_encoders: a diffusers folder whose encoders and tokenizers a BFL file is to use.
        vae: BFL's `ae.safetensors`, or a folder with a diffusers VAE.
        revision: of the hub id.

    Raises:
        CheckpointError: nothing there, or not a FLUX.1 checkpoint.
    """
    path = Path(source).expanduser()
    if revision is not None and path.exists():
        raise CheckpointError(f"{source} is on this disk; --revision is for hub ids")
    if path.is_dir():
        found = _from_folder(source, path)
    elif path.is_file():
        found = _from_bfl(source, path)
    elif _looks_like_hub_id(source):
        found = _from_folder(source, _hub_snapshot(source, revision))
    else:
        raise CheckpointError(
            f"no checkpoint at {source}; give a diffusers folder, a .safetensors file or a hub id"
        )
    parts, tokenizers = dict(found.parts), dict(found.tokenizers)
    if text_encoders is not None:
        other = _from_folder(str(text_encoders), text_encoders)
        parts |= {name: other.parts[name] for name in ("clip", "t5") if name in other.parts}
        tokenizers |= other.tokenizers
    if vae is not None:
        parts["vae"] = _vae(vae)
    return replace(
        found,
        parts=parts,
        tokenizers=tokenizers,
        text_encoders=str(text_encoders) if text_encoders else None,
        vae=str(vae) if vae else None,
    )


def _from_folder(source: str, folder: Path) -> Checkpoint:
    if not (folder / "model_index.json").is_file() and not (folder / "text_encoder").is_dir():
        raise CheckpointError(f"{folder} has no model_index.json; give the folder that holds it")
    index = _json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    parts = {name: _part(name, folder / sub) for name, sub in PARTS.items() if (folder / sub).is_dir()}
    tokenizers = {"clip": folder / "tokenizer", "t5": folder / "tokenizer_2"}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return Checkpoint(
        source=source,
        layout="diffusers",
        parts=parts,
        tokenizers={name: path for name, path in tokenizers.items() if path.is_dir()},
        pipeline=index.get("_class_name"),
        scheduler=completed("scheduler", _json(scheduler)) if scheduler.is_file() else None,
    )


def _from_bfl(source: str, path: Path) -> Checkpoint:
    tensors = read_header(path)
    if not any(prefix + MARK in tensors for prefix in BFL_PREFIXES):
        hint = "it is a VAE: give it with --vae" if VAE_MARK in tensors else f"it has no {MARK}"
        raise CheckpointError(f"{path} is not a FLUX.1 transformer in BFL's layout ({hint}); check the path")
    return Checkpoint(source=source, layout="bfl", parts={"transformer": Part(tensors, {}, "bfl")})


def _vae(path: Path) -> Part:
    if path.is_file():
        tensors = read_header(path)
        if VAE_MARK not in tensors:
            raise CheckpointError(f"{path} is not a VAE in BFL's layout (no {VAE_MARK}); check the path")
        return Part(tensors, {}, "bfl")
    return _part("vae", path / "vae" if (path / "vae").is_dir() else path)


def _part(name: str, folder: Path) -> Part:
    """A diffusers or transformers model folder: config.json and one or several safetensors files."""
    config = completed(name, _json(folder / "config.json"))
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(_json(indexes[0]).get("weight_map", {}).values()))
        files = [folder / Path(name).name for name in names]
    else:
        stems = ("diffusion_pytorch_model", "model")
        files = [p for stem in stems if (p := folder / f"{stem}.safetensors").is_file()]
    if not files:
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]), None)
        said = f"{pickled.name} is a pickle and is not loaded" if pickled else "there is no .safetensors file"
        raise CheckpointError(f"{folder}: {said}; save the model with safe_serialization=True")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        tensors |= read_header(file)
    return Part(tensors, config, "diffusers")


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


def _looks_like_hub_id(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(slash and owner and name) and "/" not in name and not source.startswith((".", "~"))


def _hub_snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError:
        raise CheckpointError(
            f"no checkpoint at {repository}, and it is not a hub id; check the path"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{repository} is neither a path nor in the hub cache, and the hub cannot be reached; "
            "check the name, the connection and HF_HUB_OFFLINE"
        ) from None
    except HfHubHTTPError as fault:
        said = str(fault).splitlines()[0]
        raise CheckpointError(f"the hub refused {repository} ({said}); log in with `hf auth login`") from None
