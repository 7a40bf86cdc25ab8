"""E4M3 codes that a checkpoint has already, kept as they are: rounding twice would lose as much again."""

from __future__ import annotations

import torch
from torch import Tensor

from flux_trt.exporter.checkpoints.recipe import Concat, Key, Recipe, Tensors
from flux_trt.exporter.checkpoints.tensorfile import AnyTensor, Decoded
from flux_trt.exporter.quantise.e4m3 import E4M3

WORST = 2.0**-8
"""Relative error of a scale in the type around fp8; a larger one means that the scale does not fit it."""


def kept(
    recipe: Recipe, tensors: Tensors, dtype: torch.dtype, per_channel: bool
) -> tuple[Tensor, Tensor] | None:
    """The codes [out, in] of a linear layer's weight and their scale in `dtype`, [out] or [].

    None where there are none that can be kept: the weight is of another type or changed (by a LoRA), its rows
    have scales and the graph has one for all, or a scale does not fit `dtype`.
    """
    if not isinstance(recipe, (Key, Concat)):
        return None
    found = [_of(tensors[name]) for name in recipe.names]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return None
    codes = torch.cat([code for code, _ in parts])
    rows = torch.cat([scale.expand(len(code)) for code, scale in parts])
    scale = rows if per_channel else rows[:1].reshape(())
    if not per_channel and bool((rows != scale).any()):
        return None
    held = scale.to(dtype)
    fits = (held.float() - scale).abs() <= WORST * scale.abs()
    return (codes, held) if bool(fits.all()) and bool((held > 0).all()) else None


def _of(info: AnyTensor) -> tuple[Tensor, Tensor] | None:
    """A tensor's codes and their scale, float32, [] or [rows]."""
    if isinstance(info, Decoded):
        return info.coded(*(part.read() for part in info.parts)) if info.coded else None
    return (info.read(), torch.ones(())) if info.dtype == E4M3 else None
