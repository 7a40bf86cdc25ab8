"""What a file is that cannot be built from, so that it can be called by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

AGAIN = "copy or download it again"
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file; give it by itself, not in a folder"),
    (b"PK\x03\x04", "a pickle (a zip of torch.save), which is not loaded; give the safetensors one"),
    (b"\x80\x02", "a pickle, which is not loaded; give the safetensors one"),
    (b"version https://git-lfs", "a Git LFS pointer and not the weights; fetch them with git lfs pull"),
    (b"<", "a page of HTML and not the weights: the download was refused; log in and download it again"),
    (b"{", "a JSON file and not the weights; give the file or folder with the weights"),
)
"""How a file begins -> what it is, and what to do."""

NAMES: tuple[tuple[str, str], ...] = (
    (
        r"lora_(unet|te\d?|transformer)_.*|.*[._]lora[._]?[ab12]?(\.(down|up|default))?\..*|.*\.lora_(down|up|A|B)\..*"
        r"|.*\.(hada|lokr)_w\d.*|.*\.processor\..*lora.*",
        "a LoRA, not a model; give the model that it belongs to, and this with --lora",
    ),
    (r"base_model\.model\..*", "wrapped by PEFT; give the model itself, and an adapter with --lora"),
    (r"(.*\.)?distilled_guidance_layer\..*", "Chroma, not FLUX.1; it is not supported"),
    (r"(.*\.)?joint_blocks\.0\..*", "Stable Diffusion 3, not FLUX.1"),
    (r"(.*\.)?(input_blocks\.0\.0\..*|down_blocks\.0\.attentions\..*)", "Stable Diffusion, not FLUX.1"),
    (
        r"(.*\.)?transformer\.resblocks\.0\..*",
        "an OpenCLIP text encoder; give the one with transformers' names",
    ),
    (r"redux_(up|down)\..*", "FLUX.1 Redux, an adapter without a transformer of its own"),
)
"""Tensor name -> what a file with it is."""

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


def foreign_file(path: Path) -> str | None:
    """What a file is by its first bytes, when it is a known kind that is no safetensors file."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    return next((what for begins, what in STARTS if start.startswith(begins)), None)


def foreign_names(names: Iterable[str]) -> str | None:
    """What a model is by its tensors' names, when it is a known kind that is not built from."""
    names = list(names)
    return next((what for mark, what in NAMES if any(re.fullmatch(mark, name) for name in names)), None)


def foreign_lora(names: Iterable[str]) -> str | None:
    """The model that a LoRA is for, by its tensors' names, when they are those of one that is known."""
    names = list(names)
    return next((what for mark, what in LORAS if any(re.fullmatch(mark, name) for name in names)), None)
