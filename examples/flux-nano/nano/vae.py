"""The autoencoder: pictures to 16 x 8 x 8 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from nano.bundle import new_vae
from nano.phase import Phase
from nano.picture import SIDE, Jitter, draw
from nano.scene import sample_crowd, sample_split

BATCH = 16
OBJECT_WEIGHT = 5.0  # extra weight of pixels on and around objects, which cover a tenth of a picture
LATENT_NOISE = 0.1  # largest noise on latents, of their spread: the decoder must forgive the DiT's errors
KL_WEIGHT = 1e-6
CROP = 32  # pixels, a multiple of 8: small crops make four times as many steps in the same time
WHOLE = 0.85  # share of the time after which whole pictures are shown
CROWDED = 0.7  # share of training pictures with up to nine objects, which teach five times as much each


def train_vae(runs: Path, minutes: float, device: torch.device, seed: int = 1) -> AutoencoderKL:
    """The autoencoder, its latents scaled to mean 0 and deviation 1."""
    torch.manual_seed(seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    phase = Phase(runs, "vae", vae, minutes, rate=2e-3, hold=0.5, betas=(0.9, 0.99))
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        pictures = sample_pictures(rng, BATCH, device, CROWDED)
        corner = rng.integers(0, (SIDE - CROP) // 8 + 1, size=2) * 8 if phase.progress < WHOLE else None
        phase.update(_loss(vae, pictures, corner))
    phase.use_average()
    vae.eval()
    _measure_latents(vae, rng, device)
    return vae


def train_decoder(
    runs: Path, minutes: float, vae: AutoencoderKL, device: torch.device, seed: int = 6
) -> AutoencoderKL:
    """Go on with the decoder alone. Latents stay what they are, so the DiT may train meanwhile."""
    torch.manual_seed(seed)
    vae.requires_grad_(False).decoder.requires_grad_(True)
    phase = Phase(runs, "decoder", vae, minutes, rate=2e-3, hold=0.3, betas=(0.9, 0.99))
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        phase.update(_loss(vae, sample_pictures(rng, BATCH, device, CROWDED)))
    phase.use_average()
    return vae.eval()


def sample_pictures(
    rng: np.random.Generator, count: int, device: torch.device, crowded: float = 0.0
) -> torch.Tensor:
    """Random pictures, f32 [count, 3, 64, 64] in -1..1; a share `crowded` with up to nine objects."""
    scenes = [
        sample_crowd(rng) if rng.random() < crowded else sample_split(rng, held_out=False)
        for _ in range(count)
    ]
    return to_tensor(
        np.stack([draw(scene, Jitter.sample(rng, len(scene.objects))) for scene in scenes]), device
    )


def to_tensor(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 [B, H, W, 3] to f32 [B, 3, H, W] in -1..1."""
    tensor = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """f32 [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]."""
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """f32 [B, 3, H, W] to packed, scaled latents [B, H/16 * W/16, 64], as FluxPipeline packs them."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        mean = vae.encode(pictures).latent_dist.mode().float()
    return pack((mean - vae.config.shift_factor) * vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode`, for square pictures."""
    return vae.decode(unpack(latents) / vae.config.scaling_factor + vae.config.shift_factor).sample


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, 16, h, w] to [B, h/2 * w/2, 64]: one token is a 2 x 2 patch, channel outermost."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`, for square pictures."""
    batch, count, width = tokens.shape
    side = round(count**0.5)
    patches = tokens.reshape(batch, side, side, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, width // 4, side * 2, side * 2)


def _loss(vae: AutoencoderKL, pictures: torch.Tensor, corner: np.ndarray | None = None) -> torch.Tensor:
    # No shape ever covers the corner pixel, so it shows the background.
    objects = ((pictures - pictures[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05).float()
    weight = 1 + OBJECT_WEIGHT * F.max_pool2d(objects, 5, stride=1, padding=2)
    if corner is not None:
        rows, columns = (slice(int(start), int(start) + CROP) for start in corner)
        pictures, weight = pictures[:, :, rows, columns], weight[:, :, rows, columns]
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.sample()
        level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        latents = latents + level * latents.detach().std() * torch.randn_like(latents)
        output = vae.decode(latents).sample
    error = output.float() - pictures
    kl = posterior.kl().mean().float()
    return (weight * (error.square() + error.abs())).mean() + KL_WEIGHT * kl


@torch.no_grad()
def _measure_latents(vae: AutoencoderKL, rng: np.random.Generator, device: torch.device) -> None:
    """Scale latents to mean 0 and deviation 1: per channel in the weights, overall in the config."""
    latents = vae.encode(sample_pictures(rng, 512, device)).latent_dist.mode()
    scale = latents.std(dim=(0, 2, 3))
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    last.weight[: len(scale)] /= scale[:, None, None, None]
    last.bias[: len(scale)] /= scale
    last.bias[len(scale) :] -= 2 * scale.log()  # log variance
    first.weight *= scale[:, None, None]
    latents = latents / scale[:, None, None]
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
