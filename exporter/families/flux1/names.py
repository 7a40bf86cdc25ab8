"""The transformer's tensor names: BFL's are its own, diffusers' become recipes for them.

The mapping follows diffusers' scripts/convert_flux_to_diffusers.py.
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
    """BFL's parameters from the tensors of diffusers' FluxTransformer2DModel."""
    recipes: dict[str, Recipe] = {}

    def same(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            recipes[f"{ours}.{kind}"] = Key(f"{theirs}.{kind}")

    def fused(ours: str, *theirs: str) -> None:
        for kind in ("weight", "bias"):
            recipes[f"{ours}.{kind}"] = Concat(*(f"{name}.{kind}" for name in theirs))

    def scale(ours: str, theirs: str) -> None:
        recipes[f"{ours}.scale"] = Key(f"{theirs}.weight")

    same("img_in", "x_embedder")
    same("txt_in", "context_embedder")
    embedders = [("time_in", "timestep_embedder"), ("vector_in", "text_embedder")]
    if guidance_embed:
        embedders.append(("guidance_in", "guidance_embedder"))
    for ours, theirs in embedders:
        same(f"{ours}.in_layer", f"time_text_embed.{theirs}.linear_1")
        same(f"{ours}.out_layer", f"time_text_embed.{theirs}.linear_2")
    for i in range(depth):
        ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        attn = f"{theirs}.attn"
        same(f"{ours}.img_mod.lin", f"{theirs}.norm1.linear")
        same(f"{ours}.txt_mod.lin", f"{theirs}.norm1_context.linear")
        fused(f"{ours}.img_attn.qkv", f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v")
        fused(f"{ours}.txt_attn.qkv", f"{attn}.add_q_proj", f"{attn}.add_k_proj", f"{attn}.add_v_proj")
        scale(f"{ours}.img_attn.norm.query_norm", f"{attn}.norm_q")
        scale(f"{ours}.img_attn.norm.key_norm", f"{attn}.norm_k")
        scale(f"{ours}.txt_attn.norm.query_norm", f"{attn}.norm_added_q")
        scale(f"{ours}.txt_attn.norm.key_norm", f"{attn}.norm_added_k")
        same(f"{ours}.img_attn.proj", f"{attn}.to_out.0")
        same(f"{ours}.txt_attn.proj", f"{attn}.to_add_out")
        for stream, ff in (("img", "ff"), ("txt", "ff_context")):
            same(f"{ours}.{stream}_mlp.0", f"{theirs}.{ff}.net.0.proj")
            same(f"{ours}.{stream}_mlp.2", f"{theirs}.{ff}.net.2")
    for i in range(depth_single_blocks):
        ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        attn = f"{theirs}.attn"
        same(f"{ours}.modulation.lin", f"{theirs}.norm.linear")
        fused(f"{ours}.linear1", f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v", f"{theirs}.proj_mlp")
        same(f"{ours}.linear2", f"{theirs}.proj_out")
        scale(f"{ours}.norm.query_norm", f"{attn}.norm_q")
        scale(f"{ours}.norm.key_norm", f"{attn}.norm_k")
    for kind in ("weight", "bias"):
        recipes[f"final_layer.adaLN_modulation.1.{kind}"] = SwapHalves(f"norm_out.linear.{kind}")
    same("final_layer.linear", "proj_out")
    return recipes
