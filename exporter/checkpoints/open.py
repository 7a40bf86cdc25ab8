"""Open a checkpoint, whatever its layout: told by what is inside, never by a file's name.

* a folder: `diffusers`, whole or the transformer alone;
* a file: `single`, one network or all of them;
* anything else of the form owner/name: a `hub` id, which is a folder.

What a checkpoint lacks is brought beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from flux_trt.exporter.checkpoints import diffusers, hub, single
from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.diffusers import PARTS
from flux_trt.exporter.checkpoints.layout import naming
from flux_trt.exporter.checkpoints.quantised.gguf import is_gguf
from flux_trt.exporter.checkpoints.tokenizer import bundle_tokenizers, has_vocabulary
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.file import asked

ENCODERS = ("clip", "t5", "text")


class Beside(TypedDict, total=False):
    """What is given beside a checkpoint; each replaces what the checkpoint itself has."""

    text_encoders: Path | None
    """A diffusers folder whose text encoders and tokenizers are used, an encoder's folder, or its file."""
    clip: Path | None
    """A single file with CLIP, or its folder with a config.json."""
    t5: Path | None
    """Likewise T5."""
    vae: Path | None
    """A single file with the VAE, or a diffusers folder that is one or has one."""
    tokenizers: str | None
    """A diffusers folder, a bundle, a T5 in GGUF, or a hub id of which only the tokenizers are fetched."""
    scheduler: Path | None
    """A `scheduler_config.json`."""
    revision: str | None
    """Of a hub id."""
    lora: Sequence[str]
    """LoRA files to merge, each as FILE or FILE:STRENGTH."""
    lora_partial: bool
    """Whether keys of those that find no place are left out."""


def open_checkpoint(source: str, *, faults: Faults | None = None, **beside: Unpack[Beside]) -> Checkpoint:
    """Look at a checkpoint without reading its tensors.

    Args:
        source: a diffusers folder, a safetensors file, or a hub id such as `owner/name`.
        faults: where those of single parts are collected; None: the first one is raised.
        beside: see `Beside`.

    Raises:
        CheckpointError: nothing there, or not a checkpoint of a known layout.
    """
    faults = faults or Faults()
    given = {
        name: str(value)
        for name, value in beside.items()
        if value not in (None, False) and name not in ("revision", "lora")
    }
    found = _read(source, beside.get("revision"), faults)
    parts, tokenizers, scheduler = dict(found.parts), dict(found.tokenizers), found.scheduler
    if (path := beside.get("text_encoders")) is not None:
        with faults.met():
            brought, known = _encoders(Path(path), faults)
            parts |= brought
            tokenizers |= known
    for name, path in (("clip", beside.get("clip")), ("t5", beside.get("t5"))):
        with faults.met():
            if path is not None:
                parts[name] = _one(Path(path), name, PARTS[name])
    if (path := beside.get("vae")) is not None:
        with faults.met():
            parts["vae"] = _one(Path(path), "vae", PARTS["vae"])
    if (where := beside.get("tokenizers")) is not None:
        with faults.met():
            tokenizers |= _tokenizers(where)
    if (path := beside.get("t5")) is not None and is_gguf(Path(path)):
        tokenizers.setdefault("t5", Path(path))  # its metadata has one
    if (path := beside.get("scheduler")) is not None:
        with faults.met():
            scheduler = diffusers.read_scheduler(Path(path))
    wanted = []
    for each in beside.get("lora", ()):
        with faults.met():
            wanted.append(asked(each))
    return replace(
        found,
        parts=parts,
        tokenizers=tokenizers,
        scheduler=scheduler,
        beside=given,
        asked=tuple(wanted),
        partial=bool(beside.get("lora_partial")),
    )


def _read(source: str, revision: str | None, faults: Faults) -> Checkpoint:
    path = Path(source).expanduser()
    if revision is not None and path.exists():
        raise CheckpointError(f"{source} is on this disk; --revision is for hub ids")
    if path.is_dir():
        return diffusers.read_folder(source, path, faults)
    if path.is_file():
        return single.read_file(source, path)
    if hub.looks_like_hub_id(source):
        return diffusers.read_folder(source, hub.snapshot(source, revision), faults)
    raise CheckpointError(
        f"no checkpoint at {source}; give a diffusers folder, a .safetensors file or a hub id"
    )


def _encoders(path: Path, faults: Faults) -> tuple[dict[str, Part], Mapping[str, Path]]:
    """Text encoders and tokenizers: of a diffusers folder, of an encoder's own folder, or of a file."""
    if path.is_file():
        found, tokenizers = single.read_parts(path), dict[str, Path]()
    elif (path / "config.json").is_file() and not (path / "model_index.json").is_file():
        part = diffusers.read_part("clip", path)
        found = {name: part for name in ("clip", diffusers.TEXT) if naming(name, part.tensors)}
        tokenizers = {diffusers.TEXT: path} if diffusers.TEXT in found and has_vocabulary(path) else {}
    else:
        other = diffusers.read_folder(str(path), path, faults)
        found, tokenizers = dict(other.parts), dict(other.tokenizers)
    encoders = {name: part for name, part in found.items() if name in ENCODERS}
    if not encoders and not tokenizers:
        raise CheckpointError(f"{path} holds no text encoder but {', '.join(found)}; check --text-encoders")
    return encoders, tokenizers


def _one(path: Path, name: str, sub: str) -> Part:
    """A part: of a single file, of its own folder, or of a whole model's folder."""
    if not path.is_dir():
        return single.read_one(path, name)
    return diffusers.read_part(name, path / sub if (path / sub).is_dir() else path)


def _tokenizers(where: str) -> dict[str, Path]:
    """Text stage -> tokenizer, of a diffusers folder, a bundle, a GGUF file with T5 or a hub id."""
    path = Path(where).expanduser()
    if path.is_file() and is_gguf(path):
        return {"t5": path}
    if not path.is_dir():
        if not hub.looks_like_hub_id(where):
            raise CheckpointError(f"no tokenizers at {where}; give a diffusers folder, a bundle or a hub id")
        path = hub.snapshot(where, None, hub.TOKENIZERS)
    found = bundle_tokenizers(path) or diffusers.read_tokenizers(path)
    if not found:
        raise CheckpointError(f"{where} has neither tokenizer/ nor tokenizer_2/, and is no bundle")
    return found
