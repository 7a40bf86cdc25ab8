"""The shape of a FLUX.3 transformer, and how a checkpoint tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families.flux3 import names
from flux_trt.exporter.families.shape import count, shape
from flux_trt.runtime.errors import CheckpointError

THETA = 10000.0
AXES = 4
ROWS = 14
"""Vectors of D numbers that modulate one step: of the picture 3 in its own blocks, 3 in single blocks and 2
at the end, then 3 of text and 3 of reference pictures in single blocks."""
EARLY_ROWS = 3
"""Of text, or of reference pictures, in their own blocks."""


@dataclass(frozen=True, kw_only=True)
class Flux3Params:
    """The shape of a FLUX.3 transformer."""

    in_channels: int
    context_in_dim: int
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int
    """Blocks of each of picture, reference pictures and text by itself."""
    depth_single_blocks: int
    """Blocks of all of them together."""
    axes_dim: tuple[int, ...]
    theta: float
    flow_map: bool

    @property
    def head_dim(self) -> int:
        """E: channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden_dim(self) -> int:
        """Channels inside an MLP; its first layer has twice as many."""
        return int(self.hidden_size * self.mlp_ratio)


KLEIN = Flux3Params(
    in_channels=128,
    context_in_dim=20480,
    hidden_size=3072,
    mlp_ratio=3.0,
    num_heads=24,
    depth=5,
    depth_single_blocks=28,
    axes_dim=(32, 32, 32, 32),
    theta=THETA,
    flow_map=True,
)
"""5.5 billion parameters: the distilled member, which has all modules that there are."""


def flux3_params(part: Part) -> Flux3Params:
    """The transformer's shape: from diffusers' config, or of a single file from the tensors.

    Raises:
        CheckpointError: a config entry or a telling tensor is missing, or the two disagree.
    """
    try:
        found = _from_config(part.config) if part.config else _from_tensors(part)
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CheckpointError(f"the transformer lacks {fault}; check that it is a whole FLUX.3") from None
    if found.flow_map != _jumps(part):
        said, has = ("is", "no") if found.flow_map else ("is not", "a")
        raise CheckpointError(
            f"the transformer's config.json says that it {said} a flow map and its tensors have {has} "
            "embedder of the time that a step jumps to; copy or download it again"
        )
    return found


def _from_config(config: Mapping[str, Any]) -> Flux3Params:
    heads, head_dim = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    if config["cond_in_channels"] != config["in_channels"]:
        raise ValueError("as many channels of reference pictures as of its own")
    if config["timestep_channels"] != 256 or float(config["eps"]) != 1e-6:
        raise ValueError("timestep_channels of 256 and an eps of 1e-6")
    return Flux3Params(
        in_channels=config["in_channels"],
        context_in_dim=config["joint_attention_dim"],
        hidden_size=heads * head_dim,
        mlp_ratio=float(config["mlp_ratio"]),
        num_heads=heads,
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=tuple(config["axes_dims_rope"]),
        theta=float(config["rope_theta"]),
        flow_map=bool(config["flow_map"]),
    )


def _from_tensors(part: Part) -> Flux3Params:
    found = {name: shape(part, recipe) for name, recipe in recipes_of(part).items()}
    hidden, in_channels = found["emb_in.image.weight"]
    (head_dim,) = found["single_blocks.0.norm.query_norm.scale"]
    return Flux3Params(
        in_channels=in_channels,
        context_in_dim=found["txt_in.weight"][1],
        hidden_size=hidden,
        mlp_ratio=found["single_blocks.0.mlp_out.weight"][1] / hidden,
        num_heads=hidden // head_dim,
        depth=count(found, "txt_mode_blocks"),
        depth_single_blocks=count(found, "single_blocks"),
        axes_dim=(head_dim // AXES,) * AXES,
        theta=THETA,
        flow_map=_jumps(part),
    )


def _jumps(part: Part) -> bool:
    """Whether there is an embedder of the time that a step jumps to."""
    return any(name.startswith(("ref_time_in.", "target_timestep_embedder.")) for name in part.tensors)


def recipes_of(part: Part) -> dict[str, Recipe]:
    """Where the transformer's parameters come from, whoever's names the part has."""
    if part.naming == "bfl":
        return names.transformer_from_bfl(part.tensors)
    depth, single = (
        count(part.tensors, blocks) for blocks in ("txt_mode_blocks", "single_transformer_blocks")
    )
    return names.transformer_from_diffusers(depth, single, _jumps(part))
