"""diffusers' AutoencoderKLFlux2 as the oracle of the VAE whose latents are normalised by batch statistics."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families.oracle import BATCH, GRID, Case, opened, state
from flux_trt.exporter.families.vae_oracle import pack
from flux_trt.exporter.families.vae_statistics import config_of


def _vae(part: Part) -> tuple[Any, str]:
    def fill() -> AutoencoderKLFlux2:
        config, found = dict(config_of(part)), state(part)
        if part.naming == "bfl":
            known = {name: found.pop(name) for name in list(found) if name.startswith("bn.")}
            inside = {re.sub(r"^(en|de)coder\.((post_)?quant_conv)", r"\2", n): t for n, t in found.items()}
            found = convert_ldm_vae_checkpoint(inside, config) | known
        model = AutoencoderKLFlux2.from_config(config)
        found.setdefault("bn.num_batches_tracked", torch.zeros((), dtype=torch.int64))
        model.load_state_dict(found)
        return model

    return opened(AutoencoderKLFlux2, part, "diffusers", fill)


def _spread(model: Any) -> tuple[Tensor, Tensor]:
    """What the pipelines normalise by."""
    return model.bn.running_mean, torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)


def encoder_case(part: Part) -> Case:
    """A picture of random pixels: the mode of its latents."""
    model, oracle = _vae(part)
    side = 2 ** len(model.config.block_out_channels)
    image = torch.randint(256, (BATCH, side * GRID[0], side * GRID[1], 3)).float()
    mode = model.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    mean, deviation = _spread(model)
    return Case({"image": image}, {"latents": (pack(mode) - mean) / deviation}, oracle)


def decoder_case(part: Part) -> Case:
    """Random latents: their picture, rounded."""
    model, oracle = _vae(part)
    C = model.config.latent_channels
    z = torch.randn(BATCH, C, 2 * GRID[0], 2 * GRID[1])
    mean, deviation = _spread(model)
    pixels = ((model.decode(z).sample / 2 + 0.5).clamp(0, 1) * 255).round()
    return Case({"latents": (pack(z) - mean) / deviation}, {"image": pixels.permute(0, 2, 3, 1)}, oracle)
