"""The VAE's tensor names: diffusers' are its own, since its modules are traced from there.

The mapping follows diffusers' scripts/convert_diffusers_to_original_stable_diffusion.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flux_trt.exporter.checkpoints.recipe import Flatten, Key, Recipe


def vae_from_diffusers(names: Iterable[str]) -> dict[str, Recipe]:
    """Every tensor under its own name."""
    return {name: Key(name) for name in names}


def vae_from_bfl(names: Iterable[str], levels: int) -> dict[str, Recipe]:
    """diffusers' AutoencoderKL from the tensors of BFL's `ae.safetensors`.

    BFL counts the decoder's levels from the picture, diffusers from the latents; BFL's attention is made of
    1x1 convolutions, diffusers' of linear layers; the 1x1 convolutions around the latents, where there are
    such, are BFL's encoder's and decoder's.
    """

    def up(match: re.Match[str]) -> str:
        return f"up_blocks.{levels - 1 - int(match[1])}."

    recipes: dict[str, Recipe] = {}
    for name in names:
        ours = re.sub(r"\bup\.(\d+)\.", up, name)
        for pattern, new in (
            (r"^(encoder|decoder)\.((post_)?quant_conv\.)", r"\2"),
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
