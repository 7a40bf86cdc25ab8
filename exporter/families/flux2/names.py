"""The transformer's tensor names: BFL's are its own, diffusers' become recipes for them.

The mapping follows diffusers' scripts/convert_flux2_to_diffusers.py. No layer has a bias.
"""

from __future__ import annotations

from collections.abc import Iterable

from flux_trt.exporter.checkpoints.recipe import Concat, Key, Recipe, SwapHalves


def transformer_from_bfl(names: Iterable[str]) -> dict[str, Recipe]:
    """Every tensor under its own name."""
    return {name: Key(name) for name in names}


def transformer_from_diffusers(
    depth: int, depth_single_blocks: int, guidance_embed: bool
) -> dict[str, Recipe]:
    """BFL's parameters from the tensors of diffusers' Flux2Transformer2DModel."""
    recipes: dict[str, Recipe] = {}

    def same(ours: str, theirs: str) -> None:
        recipes[f"{ours}.weight"] = Key(f"{theirs}.weight")

    def fused(ours: str, *theirs: str) -> None:
        recipes[f"{ours}.weight"] = Concat(*(f"{name}.weight" for name in theirs))

    def scale(ours: str, theirs: str) -> None:
        recipes[f"{ours}.scale"] = Key(f"{theirs}.weight")

    same("img_in", "x_embedder")
    same("txt_in", "context_embedder")
    embedders = [("time_in", "timestep_embedder")]
    if guidance_embed:
        embedders.append(("guidance_in", "guidance_embedder"))
    for ours, theirs in embedders:
        same(f"{ours}.in_layer", f"time_guidance_embed.{theirs}.linear_1")
        same(f"{ours}.out_layer", f"time_guidance_embed.{theirs}.linear_2")
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        same(f"{name}.lin", f"{name}.linear")
    for i in range(depth):
        ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        attn = f"{theirs}.attn"
        fused(f"{ours}.img_attn.qkv", f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v")
        fused(f"{ours}.txt_attn.qkv", f"{attn}.add_q_proj", f"{attn}.add_k_proj", f"{attn}.add_v_proj")
        scale(f"{ours}.img_attn.norm.query_norm", f"{attn}.norm_q")
        scale(f"{ours}.img_attn.norm.key_norm", f"{attn}.norm_k")
        scale(f"{ours}.txt_attn.norm.query_norm", f"{attn}.norm_added_q")
        scale(f"{ours}.txt_attn.norm.key_norm", f"{attn}.norm_added_k")
        same(f"{ours}.img_attn.proj", f"{attn}.to_out.0")
        same(f"{ours}.txt_attn.proj", f"{attn}.to_add_out")
        for stream, ff in (("img", "ff"), ("txt", "ff_context")):
            same(f"{ours}.{stream}_mlp.0", f"{theirs}.{ff}.linear_in")
            same(f"{ours}.{stream}_mlp.2", f"{theirs}.{ff}.linear_out")
    for i in range(depth_single_blocks):
        ours, attn = f"single_blocks.{i}", f"single_transformer_blocks.{i}.attn"
        same(f"{ours}.linear1", f"{attn}.to_qkv_mlp_proj")
        same(f"{ours}.linear2", f"{attn}.to_out")
        scale(f"{ours}.norm.query_norm", f"{attn}.norm_q")
        scale(f"{ours}.norm.key_norm", f"{attn}.norm_k")
    recipes["final_layer.adaLN_modulation.1.weight"] = SwapHalves("norm_out.linear.weight")
    same("final_layer.linear", "proj_out")
    return recipes
