"""Open a checkpoint, whatever its layout: told by what is inside, never by a file's name.

* a folder: `diffusers`;
* a file: `bfl`, with the encoders and the VAE that it lacks brought beside it;
* anything else of the form owner/name: a `hub` id.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flux_trt.exporter.checkpoints import bfl, diffusers, hub
from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.faults import Faults
from flux_trt.runtime.errors import CheckpointError


def open_checkpoint(
    source: str,
    *,
    text_encoders: Path | None = None,
    vae: Path | None = None,
    revision: str | None = None,
    faults: Faults | None = None,
) -> Checkpoint:
    """Look at a checkpoint without reading its tensors.

    Args:
        source: a diffusers folder, a BFL safetensors file, or a hub id such as `owner/name`.
        text_encoders: a diffusers folder whose encoders and tokenizers a BFL file is to use.
        vae: BFL's `ae.safetensors`, or a folder with a diffusers VAE.
        revision: of the hub id.
        faults: where those of single parts are collected; None: the first one is raised.

    Raises:
        CheckpointError: nothing there, or not a checkpoint of a known layout.
    """
    faults = faults or Faults()
    found = _read(source, revision, faults)
    parts, tokenizers = dict(found.parts), dict(found.tokenizers)
    if text_encoders is not None:
        with faults.met():
            other = diffusers.read_folder(str(text_encoders), text_encoders, faults)
            parts |= {name: other.parts[name] for name in ("clip", "t5") if name in other.parts}
            tokenizers |= other.tokenizers
    if vae is not None:
        with faults.met():
            parts["vae"] = _vae(vae)
    return replace(
        found,
        parts=parts,
        tokenizers=tokenizers,
        text_encoders=str(text_encoders) if text_encoders else None,
        vae=str(vae) if vae else None,
    )


def _read(source: str, revision: str | None, faults: Faults) -> Checkpoint:
    path = Path(source).expanduser()
    if revision is not None and path.exists():
        raise CheckpointError(f"{source} is on this disk; --revision is for hub ids")
    if path.is_dir():
        return diffusers.read_folder(source, path, faults)
    if path.is_file():
        return bfl.read_file(source, path)
    if hub.looks_like_hub_id(source):
        return diffusers.read_folder(source, hub.snapshot(source, revision), faults)
    raise CheckpointError(
        f"no checkpoint at {source}; give a diffusers folder, a .safetensors file or a hub id"
    )


def _vae(path: Path) -> Part:
    if path.is_file():
        return bfl.read_vae(path)
    return diffusers.read_part("vae", path / "vae" if (path / "vae").is_dir() else path)
