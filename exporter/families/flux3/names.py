"""The transformer's tensor names: BFL's are its own, diffusers' become recipes for them.

The mapping follows diffusers' convert_flux3_transformer_checkpoint_to_diffusers. Nothing is fused: all but
one tensor lie in either layout's files as they are used. No layer has a bias.
"""

from __future__ import annotations

from collections.abc import Iterable

from flux_trt.exporter.checkpoints.recipe import Key, Recipe, SwapHalves

IGNORED = {r"repa_projectors\..*": "it is of training alone"}
MODES = ("image", "image_cond")
"""The picture that is painted, and reference pictures."""


def transformer_from_bfl(names: Iterable[str]) -> dict[str, Recipe]:
    """Every tensor under its own name."""
    return {name: Key(name) for name in names}


def transformer_from_diffusers(depth: int, depth_single_blocks: int, flow_map: bool) -> dict[str, Recipe]:
    """BFL's parameters from the tensors of diffusers' Flux3Transformer2DModel."""
    recipes: dict[str, Recipe] = {}

    def same(ours: str, theirs: str) -> None:
        recipes[f"{ours}.weight"] = Key(f"{theirs}.weight")

    def block(ours: str, theirs: str) -> None:
        for name in ("q", "k", "v"):
            same(f"{ours}.{name}_proj", f"{theirs}.attn.to_{name}")
        for name, short in (("query", "q"), ("key", "k")):
            recipes[f"{ours}.norm.{name}_norm.scale"] = Key(f"{theirs}.attn.norm_{short}.weight")
        same(f"{ours}.attn_out", f"{theirs}.attn.to_out.0")
        same(f"{ours}.mlp_in", f"{theirs}.ff.linear_in")
        same(f"{ours}.mlp_out", f"{theirs}.ff.linear_out")

    same("txt_in", "context_embedder")
    embedders = [("time_in", "timestep_embedder")]
    if flow_map:
        embedders.append(("ref_time_in", "target_timestep_embedder"))
    for ours, theirs in embedders:
        same(f"{ours}.in_layer", f"{theirs}.linear_1")
        same(f"{ours}.out_layer", f"{theirs}.linear_2")
    for mode in (*MODES, "txt"):
        for name in ("early_stream_modulations", "single_stream_modulations"):
            same(f"{name}.{mode}.lin", f"{name}.{mode}.linear")
    for mode in MODES:
        same(f"emb_in.{mode}", f"x_embedders.{mode}")
        for i in range(depth):
            block(f"content_mode_blocks.{mode}.{i}", f"mode_blocks.{mode}.{i}")
    for i in range(depth):
        block(f"txt_mode_blocks.{i}", f"txt_mode_blocks.{i}")
    for i in range(depth_single_blocks):
        block(f"single_blocks.{i}", f"single_transformer_blocks.{i}")
    recipes["final_layer.image.adaLN_modulation.1.weight"] = SwapHalves("norm_out.linear.weight")
    same("final_layer.image.linear", "proj_out")
    return recipes
