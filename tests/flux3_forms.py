"""A small FLUX.3 in the forms in which people have it."""

from __future__ import annotations

from pathlib import Path

import torch

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux3.names import transformer_from_diffusers
from flux_trt.exporter.families.flux3.params import flux3_params

Tensors = dict[str, torch.Tensor]


def bfl(folder: Path) -> Tensors:
    """The transformer of a diffusers folder under BFL's names."""
    part = open_checkpoint(str(folder)).parts["transformer"]
    p = flux3_params(part)
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.flow_map)
    return {name: recipe.load(part.tensors) for name, recipe in recipes.items()}


def trained(tensors: Tensors) -> Tensors:
    """With heads that only training used."""
    return {
        **tensors,
        "repa_projectors.0.weight": torch.randn(4, 4),
        "repa_projectors.0.bias": torch.randn(4),
    }
