"""The VAE for tracing: diffusers' AutoencoderKL between uint8 pictures and packed, scaled latents.

The graphs do what diffusers leaves to the pipeline: pixels to -1..1 and back, scale and shift of the
latents, and the 2x2 packing into tokens (FluxPipeline._pack_latents; VaeImageProcessor). uint8 stands at the
very end only: TensorRT has it nowhere else. The encoder takes float pixels, because what Fill masks out is
the grey 127.5, which uint8 has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.checkpoints.recipe import Recipe
from flux_trt.exporter.families import vae_names
from flux_trt.exporter.families.stage import Stage, Varying, f32
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import CheckpointError


class VaeEncoder(AutoencoderKL):
    """Picture to the normal distribution of its latents, token by token."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, 16 h, 16 w, 3] f32, 0..255 -> latents (the mode) and deviation, [B, h, w, 4 C] f32.

        A sample, as diffusers' image-to-image takes it, is latents + deviation x noise.
        """
        found = self.encode(as_seen(image).to(self.dtype)).latent_dist
        mode = (found.mean.float() - _shift(self)) * self.config.scaling_factor
        return packed(mode), packed(found.std.float() * self.config.scaling_factor)


class VaeDecoder(AutoencoderKL):
    """Latents to picture."""

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, h, w, 4 C] float32 -> image [B, 16 h, 16 w, 3] uint8, rounded as diffusers rounds."""
        z = unpacked(latents, self.config.latent_channels) / self.config.scaling_factor + _shift(self)
        return as_shown(self.decode(z.to(self.dtype)).sample.float())


def as_seen(image: Tensor) -> Tensor:
    """[B, H, W, 3] of 0..255 -> [B, 3, H, W] of -1..1."""
    return image.permute(0, 3, 1, 2) / 127.5 - 1


def as_shown(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] of -1..1 -> [B, H, W, 3] uint8."""
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()
    return pixels.permute(0, 2, 3, 1).to(torch.uint8)


def _shift(vae: AutoencoderKL) -> float:
    """What is taken from the latents before they are scaled; null in a config is none."""
    return float(vae.config.shift_factor or 0)


def packed(z: Tensor) -> Tensor:
    """[B, C, 2 h, 2 w] -> [B, h, w, 4 C]."""
    B, C, H, W = z.shape
    z = z.reshape(B, C, H // 2, 2, W // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(B, H // 2, W // 2, 4 * C)


def unpacked(latents: Tensor, channels: int) -> Tensor:
    """[B, h, w, 4 C] -> [B, C, 2 h, 2 w]."""
    B, h, w, _ = latents.shape
    z = latents.reshape(B, h, w, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(B, channels, 2 * h, 2 * w)


def config_from_tensors(part: Part) -> dict[str, Any]:
    """diffusers' config of a single file: what the shapes tell, else FLUX.1's (BFL src/flux/util.py).

    Scale and shift cannot be told: Stable Diffusion 3's VAE has the same tensors.

    Raises:
        CheckpointError: a tensor that tells the shape is missing.
    """
    bfl = part.naming == "bfl"
    level, block = ("encoder.down.{}.", "block.{}.") if bfl else ("encoder.down_blocks.{}.", "resnets.{}.")
    try:
        levels = _count(part.tensors, level.split("{")[0])
        blocks = _count(part.tensors, level.format(0) + block.split("{")[0])
        first = level + block.format(0) + "conv1.weight"
        channels = [part.tensors[first.format(i)].shape[0] for i in range(levels)]
        latent_channels = part.tensors["decoder.conv_in.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as fault:
        raise CheckpointError(f"the VAE file lacks {fault}; copy or download it again") from None
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "latent_channels": latent_channels,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def _count(names: Iterable[str], before: str) -> int:
    """One more than the highest number that follows `before` in a name."""
    return 1 + max(int(name.removeprefix(before).split(".")[0]) for name in names if name.startswith(before))


def encoder(config: Mapping[str, Any]) -> VaeEncoder:
    """The encoder from a diffusers config."""
    return VaeEncoder.from_config(dict(config))


def decoder(config: Mapping[str, Any]) -> VaeDecoder:
    """The decoder from a diffusers config."""
    return VaeDecoder.from_config(dict(config))


def config_of(part: Part) -> Mapping[str, Any]:
    """diffusers' config of the part, whoever's names it has."""
    return part.config or config_from_tensors(part)


def patch_of(config: Mapping[str, Any]) -> int:
    """Pixels of a latent token's side: 2x2 latent pixels, each level but one halves the picture."""
    return 2 ** len(config["block_out_channels"])


def _recipes(part: Part, config: Mapping[str, Any]) -> dict[str, Recipe]:
    if part.naming == "bfl":
        return vae_names.vae_from_bfl(part.tensors, len(config["block_out_channels"]))
    return vae_names.vae_from_diffusers(part.tensors)


def latents_of(name: str, config: Mapping[str, Any]) -> manifest.Tensor:
    """A tensor of latent tokens: [batch, h, w, 4 C]."""
    return f32(name, "batch", "h", "w", 4 * config["latent_channels"])


def encoder_stage(part: Part) -> Stage:
    """Pictures to latents, from AutoencoderKL."""
    config = config_of(part)
    h, w, patch = Varying(example=4), Varying(example=6), patch_of(config)
    return Stage(
        name="vae_encoder",
        part="vae",
        build=partial(encoder, config),
        tensors=part.tensors,
        recipes=_recipes(part, config),
        inputs=[f32("image", "batch", "height", "width", 3)],
        outputs=[latents_of("latents", config), latents_of("deviation", config)],
        dims={
            "batch": Varying(example=2),
            "h": h,
            "w": w,
            "height": Varying(example=patch * h.example, of="h", times=patch),
            "width": Varying(example=patch * w.example, of="w", times=patch),
        },
        config=config,
        runs="reference",
        uses=("encoder.", "quant_conv."),
        safer={"fp16": "fp32"},
    )


def decoder_stage(part: Part) -> Stage:
    """Latents to pictures, from AutoencoderKL.

    diffusers' upsampler branches on a batch of 64, to call `.contiguous()`: both branches are one graph, and
    the tracer sees the one below.
    """
    config = config_of(part)
    return Stage(
        name="vae_decoder",
        part="vae",
        build=partial(decoder, config),
        tensors=part.tensors,
        recipes=_recipes(part, config),
        inputs=[latents_of("latents", config)],
        outputs=[manifest.Tensor(name="image", dtype="uint8", dims=["batch", "height", "width", 3])],
        dims={"batch": Varying(example=2, most=63), "h": Varying(example=4), "w": Varying(example=6)},
        config=config,
        runs="picture",
        uses=("decoder.", "post_quant_conv."),
        safer={"fp16": "fp32"},
    )
