"""Single files with Black Forest Labs' names: the transformer, and `ae.safetensors`.

Checkpoints that ComfyUI writes put a prefix before every name of the transformer; it is dropped here.
"""

from __future__ import annotations

from pathlib import Path

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint, Part
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.runtime.errors import CheckpointError

MARK = "double_blocks.0.img_attn.qkv.weight"
VAE_MARK = "decoder.mid.block_1.conv1.weight"
PREFIX = "model.diffusion_model."


def read_file(source: str, path: Path) -> Checkpoint:
    """The transformer of a file; all else that a picture needs is brought by options.

    Raises:
        CheckpointError: not such a file.
    """
    found = read_header(path)
    if MARK not in found and PREFIX + MARK not in found:
        hint = "it is a VAE: give it with --vae" if VAE_MARK in found else f"it has no {MARK}"
        raise CheckpointError(f"{path} is not a FLUX.1 transformer in BFL's layout ({hint}); check the path")
    tensors = {name.removeprefix(PREFIX): info for name, info in found.items()}
    return Checkpoint(source=source, layout="bfl", parts={"transformer": Part(tensors, {}, "bfl")})


def read_vae(path: Path) -> Part:
    """The VAE of BFL's `ae.safetensors`.

    Raises:
        CheckpointError: not such a file.
    """
    tensors = read_header(path)
    if VAE_MARK not in tensors:
        raise CheckpointError(f"{path} is not a VAE in BFL's layout (no {VAE_MARK}); check the path")
    return Part(tensors, {}, "bfl")
