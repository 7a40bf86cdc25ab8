"""diffusers' AutoencoderKL as the oracle of the VAE's stages."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.oracle import BATCH, GRID, Case, opened, state
from flux_trt.exporter.families.vae import config_of


def _vae(part: Part) -> tuple[Any, str]:
    def fill() -> AutoencoderKL:
        config, found = dict(config_of(part)), state(part)
        if part.naming == "bfl":
            found = convert_ldm_vae_checkpoint(found, config)
        model = AutoencoderKL.from_config(config)
        model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
        return model

    return opened(AutoencoderKL, part, "diffusers", fill)


def pack(z: Tensor) -> Tensor:
    """[B, C, 2 h, 2 w] -> [B, h, w, 4 C]."""
    B, C, H, W = z.shape
    return z.view(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, H // 2, W // 2, 4 * C)


def encoder_case(part: Part) -> Case:
    """A picture of random pixels: the mode and the deviation of its latents."""
    model, oracle = _vae(part)
    image = torch.randint(256, (BATCH, 16 * GRID[0], 16 * GRID[1], 3)).float()
    seen = model.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    scaled = (seen.mode() - (model.config.shift_factor or 0)) * model.config.scaling_factor
    deviation = seen.std * model.config.scaling_factor
    return Case({"image": image}, {"latents": pack(scaled), "deviation": pack(deviation)}, oracle)


def decoder_case(part: Part) -> Case:
    """Random latents: their picture, rounded."""
    model, oracle = _vae(part)
    scaled = torch.randn(BATCH, model.config.latent_channels, 2 * GRID[0], 2 * GRID[1])
    z = scaled / model.config.scaling_factor + (model.config.shift_factor or 0)
    pixels = ((model.decode(z).sample / 2 + 0.5).clamp(0, 1) * 255).round()
    return Case({"latents": pack(scaled)}, {"image": pixels.permute(0, 2, 3, 1)}, oracle)
