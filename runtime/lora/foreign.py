"""Which model a LoRA is for, by its tensors' names, so that an error can say it."""

from __future__ import annotations

import re
from collections.abc import Iterable

LORAS: tuple[tuple[str, str], ...] = (
    (
        r".*(double|single)_stream_modulation.*|.*to_qkv_mlp_proj.*|.*[._]ff(_context)?[._]linear_(in|out).*"
        r"|.*time_guidance_embed.*|(.*\.)?sformer_blocks\..*",
        "FLUX.2",
    ),
    (r".*mode_blocks.*", "FLUX.3"),
    (r".*distilled_guidance_layer.*", "Chroma"),
    (
        r".*(input|output|down|up|mid)_blocks?[._](\d+[._])*(attentions|resnets|transformer_blocks|\d).*"
        r"|lora_te2_text_model_.*|text_encoder_2\.text_model\..*|unet\..*|lora_unet_(label|time)_emb.*",
        "Stable Diffusion or SDXL",
    ),
    (r".*joint_blocks[._].*", "Stable Diffusion 3"),
    (
        r".*transformer_blocks[._]\d+[._](img|txt)_(mlp[._]net|mod[._]1).*"
        r"|.*transformer_blocks[._][45]\d[._]attn[._]add_q.*",
        "Qwen-Image",
    ),
    (r".*transformer_blocks[._][23]\d[._]attn[._]add_q.*", "Stable Diffusion 3"),
    (r".*img_(mod[._]linear|mlp[._]fc[12]|attn_(qkv|proj)\.).*|.*individual_token_refiner.*", "HunyuanVideo"),
    (r"(.*[._])?blocks[._]\d+[._](self_attn|cross_attn)[._][qkv]_proj[._].*", "Anima or Cosmos"),
    (
        r"(.*[._])?blocks[._]\d+[._](self_attn|cross_attn)[._][qkvo][._].*|(.*[._])?blocks[._]\d+[._]ffn[._].*",
        "Wan",
    ),
    (r"(.*[._])?blocks[._]\d+[._]attn[._](gate|wq)[._].*", "Krea 2"),
    (r".*transformer_blocks[._]\d+[._]attn[12][._].*", "LTX-Video, PixArt or CogVideoX"),
    (r".*double_stream_blocks[._].*", "HiDream"),
    (r"(.*[._])?layers[._]\d+[._](attention|feed_forward|adaLN_modulation)[._].*", "Z-Image or Lumina"),
    (r".*joint_transformer_blocks[._].*", "AuraFlow"),
)
"""Tensor name -> the model that a LoRA with it is for; the first that is found counts."""


def foreign_lora(names: Iterable[str]) -> str | None:
    """The model that a LoRA is for, by its tensors' names, when they are those of one that is known."""
    names = list(names)
    return next((what for mark, what in LORAS if any(re.fullmatch(mark, name) for name in names)), None)
