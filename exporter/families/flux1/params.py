"""The shape of a FLUX.1 transformer, and how a checkpoint tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families.flux1 import names
from flux_trt.exporter.families.shape import Shape, count, shape
from flux_trt.runtime.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class FluxParams(Shape):
    """The shape of a FLUX.1 transformer, under BFL's names."""

    out_channels: int
    vec_in_dim: int

    @property
    def modulation_rows(self) -> int:
        """M: vectors of D numbers that one step needs: 12 a double block, 3 a single block, 2 at the end."""
        return 12 * self.depth + 3 * self.depth_single_blocks + 2


FLUX_DEV = FluxParams(
    in_channels=64,
    out_channels=64,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=(16, 56, 56),
    theta=10_000.0,
    guidance_embed=True,
)
"""FLUX.1-dev: 11.9 billion parameters."""


def flux_params(part: Part) -> FluxParams:
    """The transformer's shape: from diffusers' config, or of a single file from the tensors.

    Raises:
        CheckpointError: a config entry or a telling tensor is missing.
    """
    try:
        return _params_from_config(part.config) if part.config else _params_from_tensors(part)
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CheckpointError(f"the transformer lacks {fault}; check that it is a whole FLUX.1") from None


def axes_of(head_dim: int) -> tuple[int, int, int]:
    """How a head's channels are shared among time, height and width where nothing says it: time has 16.

    The official configs do not say it, and BFL's files cannot; FLUX.1 has (16, 56, 56).
    """
    return 16, (head_dim - 16) // 2, (head_dim - 16) // 2


def _params_from_config(config: Mapping[str, Any]) -> FluxParams:
    heads, head_dim = int(config["num_attention_heads"]), int(config["attention_head_dim"])
    return FluxParams(
        in_channels=config["in_channels"],
        out_channels=config.get("out_channels") or config["in_channels"],
        vec_in_dim=config["pooled_projection_dim"],
        context_in_dim=config["joint_attention_dim"],
        hidden_size=heads * head_dim,
        mlp_ratio=4.0,
        num_heads=heads,
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=tuple(config["axes_dims_rope"] or axes_of(head_dim)),
        theta=10_000.0,
        guidance_embed=bool(config["guidance_embeds"]),
    )


def _params_from_tensors(part: Part) -> FluxParams:
    found = {name: shape(part, recipe) for name, recipe in recipes_of(part).items()}
    hidden, in_channels = found["img_in.weight"]
    (head_dim,) = found["double_blocks.0.img_attn.norm.query_norm.scale"]
    return FluxParams(
        in_channels=in_channels,
        out_channels=found["final_layer.linear.weight"][0],
        vec_in_dim=found["vector_in.in_layer.weight"][1],
        context_in_dim=found["txt_in.weight"][1],
        hidden_size=hidden,
        mlp_ratio=found["double_blocks.0.img_mlp.0.weight"][0] / hidden,
        num_heads=hidden // head_dim,
        depth=count(found, "double_blocks"),
        depth_single_blocks=count(found, "single_blocks"),
        axes_dim=axes_of(head_dim),
        theta=10_000.0,
        guidance_embed="guidance_in.in_layer.weight" in found,
    )


def recipes_of(part: Part) -> dict[str, Recipe]:
    """Where the transformer's parameters come from, whoever's names the part has."""
    if part.naming == "bfl":
        return names.transformer_from_bfl(part.tensors)
    depth, single = (count(part.tensors, f"{kind}transformer_blocks") for kind in ("", "single_"))
    guidance = any(name.startswith("time_text_embed.guidance_embedder.") for name in part.tensors)
    return names.transformer_from_diffusers(depth, single, guidance)
