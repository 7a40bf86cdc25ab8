"""What the shapes of all FLUX transformers have, and how tensors tell them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a transformer of double and single blocks, under BFL's names."""

    in_channels: int
    context_in_dim: int
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    theta: float
    guidance_embed: bool

    @property
    def head_dim(self) -> int:
        """E: channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden_dim(self) -> int:
        """Channels inside an MLP; the first layer of a gated one has twice as many."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def blocks(self) -> int:
        """All blocks that attend: the double ones, then the single ones."""
        return self.depth + self.depth_single_blocks


def count(names: Iterable[str], blocks: str) -> int:
    """How many blocks of a kind have a name there."""
    return len({name.split(".")[1] for name in names if name.startswith(blocks + ".")})


def shape(part: Part, recipe: Recipe) -> tuple[int, ...]:
    """Of a parameter; () where a tensor of it is missing, which is found and named later."""
    return recipe.shape(part.tensors) if set(recipe.names) <= set(part.tensors) else ()
