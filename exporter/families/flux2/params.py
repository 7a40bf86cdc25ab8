"""The shape of a FLUX.2 transformer, and how a checkpoint tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families.flux2 import names
from flux_trt.exporter.families.shape import Shape, count, shape
from flux_trt.runtime.errors import CheckpointError

THETA = 2000.0
AXES = 4
ROWS = 17
"""Vectors of D numbers that modulate one step: 6 for img, 6 for txt, 3 for single blocks, 2 at the end."""
REFERENCE_ROWS = 9
"""Of these, what reference pictures are modulated by: 6 for img and 3 for single blocks."""


@dataclass(frozen=True, kw_only=True)
class Flux2Params(Shape):
    """The shape of a FLUX.2 transformer, under BFL's names."""


KLEIN_4B = Flux2Params(
    in_channels=128,
    context_in_dim=7680,
    hidden_size=3072,
    mlp_ratio=3.0,
    num_heads=24,
    depth=5,
    depth_single_blocks=20,
    axes_dim=(32, 32, 32, 32),
    theta=THETA,
    guidance_embed=False,
)
"""3.9 billion parameters."""


DEV = Flux2Params(
    in_channels=128,
    context_in_dim=15360,
    hidden_size=6144,
    mlp_ratio=3.0,
    num_heads=48,
    depth=8,
    depth_single_blocks=48,
    axes_dim=(32, 32, 32, 32),
    theta=THETA,
    guidance_embed=True,
)
"""32.2 billion parameters: the member with all modules that there are."""


def flux2_params(part: Part) -> Flux2Params:
    """The transformer's shape: from diffusers' config, or of a single file from the tensors.

    Raises:
        CheckpointError: a config entry or a telling tensor is missing.
    """
    try:
        return _from_config(part.config) if part.config else _from_tensors(part)
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CheckpointError(f"the transformer lacks {fault}; check that it is a whole FLUX.2") from None


def _from_config(config: Mapping[str, Any]) -> Flux2Params:
    heads, head_dim = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    if config["patch_size"] != 1 or config["out_channels"] not in (None, config["in_channels"]):
        raise ValueError("a patch_size of 1 and as many channels out as in")
    if config["timestep_guidance_channels"] != 256 or float(config["eps"]) != 1e-6:
        raise ValueError("timestep_guidance_channels of 256 and an eps of 1e-6")
    return Flux2Params(
        in_channels=config["in_channels"],
        context_in_dim=config["joint_attention_dim"],
        hidden_size=heads * head_dim,
        mlp_ratio=float(config["mlp_ratio"]),
        num_heads=heads,
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=tuple(config["axes_dims_rope"]),
        theta=float(config["rope_theta"]),
        guidance_embed=bool(config["guidance_embeds"]),
    )


def _from_tensors(part: Part) -> Flux2Params:
    found = {name: shape(part, recipe) for name, recipe in recipes_of(part).items()}
    hidden, in_channels = found["img_in.weight"]
    (head_dim,) = found["double_blocks.0.img_attn.norm.query_norm.scale"]
    return Flux2Params(
        in_channels=in_channels,
        context_in_dim=found["txt_in.weight"][1],
        hidden_size=hidden,
        mlp_ratio=found["double_blocks.0.img_mlp.2.weight"][1] / hidden,
        num_heads=hidden // head_dim,
        depth=count(found, "double_blocks"),
        depth_single_blocks=count(found, "single_blocks"),
        axes_dim=(head_dim // AXES,) * AXES,
        theta=THETA,
        guidance_embed="guidance_in.in_layer.weight" in found,
    )


def recipes_of(part: Part) -> dict[str, Recipe]:
    """Where the transformer's parameters come from, whoever's names the part has."""
    if part.naming == "bfl":
        return names.transformer_from_bfl(part.tensors)
    depth, single = (count(part.tensors, f"{kind}transformer_blocks") for kind in ("", "single_"))
    guidance = any(name.startswith("time_guidance_embed.guidance_embedder.") for name in part.tensors)
    return names.transformer_from_diffusers(depth, single, guidance)
