"""The VAE whose latents are normalised by batch statistics: diffusers' AutoencoderKLFlux2 for tracing.

As in `vae`, with another normaliser: per channel of a token, by a mean and a variance that are parameters of
the checkpoint. In diffusers' module they are buffers, which a trace would keep as constants. The encoder
gives the mode alone: no pipeline draws a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor, nn

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families import vae
from flux_trt.exporter.families.stage import Stage
from flux_trt.runtime.errors import CheckpointError

MARK = "bn.running_mean"
IGNORED = {r"bn\.num_batches_tracked": "it counts training steps"}
EPS = 1e-4


class Statistics(nn.Module):
    """What latent tokens are normalised by."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels))
        self.running_var = nn.Parameter(torch.ones(channels))
        self.eps = eps

    @property
    def scale(self) -> Tensor:
        """[4 C], float32."""
        return torch.sqrt(self.running_var.float() + self.eps)

    def normalised(self, tokens: Tensor) -> Tensor:
        """[B, h, w, 4 C] -> likewise, float32."""
        return (tokens.float() - self.running_mean.float()) / self.scale

    def restored(self, tokens: Tensor) -> Tensor:
        """The other way round."""
        return tokens * self.scale + self.running_mean.float()


class VaeEncoder(AutoencoderKLFlux2):
    """Picture to latents, token by token."""

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 16 h, 16 w, 3] f32, 0..255 -> latents (the mode) [B, h, w, 4 C] f32."""
        found = self.encode(vae.as_seen(image).to(self.dtype)).latent_dist
        return self.bn.normalised(vae.packed(found.mean.float()))


class VaeDecoder(AutoencoderKLFlux2):
    """Latents to picture."""

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, h, w, 4 C] float32 -> image [B, 16 h, 16 w, 3] uint8, rounded as diffusers rounds."""
        z = vae.unpacked(self.bn.restored(latents), self.config.latent_channels)
        return vae.as_shown(self.decode(z.to(self.dtype)).sample.float())


def config_of(part: Part) -> Mapping[str, Any]:
    """diffusers' config of the part, or of a single file what the shapes tell.

    Raises:
        CheckpointError: a VAE without statistics.
    """
    if MARK not in part.tensors:
        raise CheckpointError(
            f"the VAE has no statistics of its latents ({MARK}): it is another family's; "
            "give this model's own with --vae"
        )
    if part.config:
        return part.config
    config = vae.config_from_tensors(part)
    level, levels = len(config["block_out_channels"]), range(len(config["block_out_channels"]))
    first = "decoder.up.{}.block.0.conv1.weight" if part.naming == "bfl" else None
    widths = [
        part.tensors[
            first.format(i) if first else f"decoder.up_blocks.{level - 1 - i}.resnets.0.conv1.weight"
        ].shape[0]
        for i in levels
    ]
    for name in ("scaling_factor", "shift_factor"):
        del config[name]
    own = {"decoder_block_out_channels": widths, "batch_norm_eps": EPS}
    return {**config, **own, "use_quant_conv": True, "use_post_quant_conv": True}


def encoder_stage(part: Part) -> Stage:
    """Pictures to latents."""
    config = config_of(part)
    plain = vae.encoder_stage(replace(part, config=config))
    return replace(
        plain,
        build=partial(_made, VaeEncoder, config),
        outputs=[vae.latents_of("latents", config)],
        uses=(*plain.uses, "bn."),
    )


def decoder_stage(part: Part) -> Stage:
    """Latents to pictures."""
    config = config_of(part)
    plain = vae.decoder_stage(replace(part, config=config))
    return replace(plain, build=partial(_made, VaeDecoder, config), uses=(*plain.uses, "bn."))


def _made(kind: type[AutoencoderKLFlux2], config: Mapping[str, Any]) -> AutoencoderKLFlux2:
    made = kind.from_config(dict(config))
    channels = 4 * made.config.latent_channels
    made.bn = Statistics(channels, made.config.batch_norm_eps)
    return made
