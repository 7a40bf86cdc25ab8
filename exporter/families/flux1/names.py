"""Other projects' tensor names, as recipes for ours.

The transformer's own names are BFL's, the VAE's are diffusers' (its modules are traced from there).
Mappings follow diffusers' scripts/convert_flux_to_diffusers.py and convert_diffusers_to_original_*.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flux_trt.exporter.checkpoints.recipe import Concat, Flatten, Key, Recipe, SwapHalves

BFL_PREFIXES = ("", "model.diffusion_model.")


def same(names: Iterable[str]) -> dict[str, Recipe]:
    """Every tensor under its own name."""
    return {name: Key(name) for name in names}


def transformer_from_bfl(names: Iterable[str]) -> dict[str, Recipe]:
    """Every tensor under its own name; a prefix that the ComfyUI checkpoints add is dropped."""
    prefix = BFL_PREFIXES[1]
    return {name.removeprefix(prefix): Key(name) for name in names}


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


def text_encoder(names: Iterable[str]) -> dict[str, Recipe]:
    """CLIP's and T5's tensors under transformers' present names.

    transformers 5 dropped CLIP's `text_model.` prefix, checkpoints on the hub have it; T5 checkpoints name
    the embedding `shared.weight`, `encoder.embed_tokens.weight` or both.
    """
    recipes: dict[str, Recipe] = {}
    for name in names:
        recipes[name.removeprefix("text_model.")] = Key(name)
    shared, embed = "shared.weight", "encoder.embed_tokens.weight"
    for one, other in ((shared, embed), (embed, shared)):
        if one in recipes:
            recipes.setdefault(other, recipes[one])
    return recipes


def vae_from_bfl(names: Iterable[str], levels: int) -> dict[str, Recipe]:
    """diffusers' AutoencoderKL from the tensors of BFL's `ae.safetensors`.

    BFL counts the decoder's levels from the picture, diffusers from the latents; BFL's attention is made of
    1x1 convolutions, diffusers' of linear layers.
    """

    def up(match: re.Match[str]) -> str:
        return f"up_blocks.{levels - 1 - int(match[1])}."

    recipes: dict[str, Recipe] = {}
    for name in names:
        ours = re.sub(r"\bup\.(\d+)\.", up, name)
        for pattern, new in (
            (r"\bdown\.(\d+)\.", r"down_blocks.\1."),
            (r"_blocks\.(\d+)\.block\.", r"_blocks.\1.resnets."),
            (r"\bdownsample\.", "downsamplers.0."),
            (r"\bupsample\.", "upsamplers.0."),
            (r"\bmid\.block_1\.", "mid_block.resnets.0."),
            (r"\bmid\.block_2\.", "mid_block.resnets.1."),
            (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
            (r"\bnin_shortcut\.", "conv_shortcut."),
            (r"\bnorm_out\.", "conv_norm_out."),
        ):
            ours = re.sub(pattern, new, ours)
        if ".attentions." in ours:
            for theirs, new in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v")):
                ours = ours.replace(f".0.{theirs}.", f".0.{new}.")
            ours = ours.replace(".0.proj_out.", ".0.to_out.0.")
        linear = ".to_" in ours and ours.endswith(".weight")
        recipes[ours] = Flatten(name) if linear else Key(name)
    return recipes
