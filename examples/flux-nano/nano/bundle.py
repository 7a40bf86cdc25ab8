"""The checkpoint: FLUX.1's parts at small size, and the diffusers folder they are saved to."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel

from nano import forms
from nano.vocabulary import CLIP_LENGTH, clip_tokenizer, t5_tokenizer

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def new_vae() -> AutoencoderKL:
    """FLUX's autoencoder with narrow layers."""
    return AutoencoderKL(**forms.vae((16, 32, 64, 96), 1, side=64, groups=8, scaling=1.0, shift=0.0))


def new_clip() -> CLIPTextModel:
    """CLIP's text encoder of width 64."""
    tokenizer = clip_tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # where transformers pools: the first end-of-text token
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_t5() -> T5EncoderModel:
    """T5 v1.1's encoder of width 128."""
    return T5EncoderModel(
        forms.t5(
            vocab_size=len(t5_tokenizer()),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def new_transformer() -> FluxTransformer2DModel:
    """FLUX.1-dev's transformer with 2 + 4 blocks of width 192; modulation and output start at zero."""
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out.") or (".linear." in name and "norm" in name):
            torch.nn.init.zeros_(parameter)
    return model


def save(
    folder: Path,
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the diffusers folder aside, then swap its parts in one by one: no part is ever half there."""
    transformer, vae, clip, t5 = (
        copy.deepcopy(part).to("cpu", dtype, memory_format=torch.contiguous_format)
        for part in (transformer, vae, clip, t5)
    )
    pipe = FluxKontextPipeline(  # it follows reference pictures, too
        scheduler=forms.scheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".saving"
    shutil.rmtree(aside, ignore_errors=True)
    pipe.save_pretrained(aside, safe_serialization=True)
    for config in aside.glob("*/config.json"):
        drop_paths(config)
    for part in PARTS:
        old = folder / f".old-{part}"
        shutil.rmtree(old, ignore_errors=True)
        if (folder / part).exists():
            (folder / part).rename(old)
        (aside / part).rename(folder / part)
        shutil.rmtree(old, ignore_errors=True)
    (aside / "model_index.json").replace(folder / "model_index.json")
    shutil.rmtree(aside)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The folder as diffusers' text-to-image reads it."""
    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drop_paths(config: Path) -> None:
    """A config must not remember the machine it was written on."""
    fields = json.loads(config.read_text())
    fields.pop("_name_or_path", None)
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
