"""What the eye would say of latents: a small net that sees a thumbnail in them, cheaper than the decoder.

The autoencoder puts neighbouring hues close together (yellow and orange differ less than two pictures of one
caption do), so a small error of the latents can be a wrong colour. The transformer therefore also learns from
how far its guess looks from the truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from nano.phase import Phase
from nano.vae import OBJECT_WEIGHT, encode, sample_pictures

PICTURES = 12_000
CELL = 4  # pixels of the picture for one of the thumbnail
NOISE = 0.4  # largest noise on the latents it learns from: it must judge guesses, too
BATCH = 128


class Sight(nn.Module):
    """Latent tokens [B, 16, 64] to thumbnails [B, 3, 16, 16] in -1..1."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.near = nn.Conv2d(64, width, 3, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3 * (16 // CELL) ** 2, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The thumbnails."""
        side = round(tokens.shape[1] ** 0.5)
        x = tokens.transpose(1, 2).unflatten(2, (side, side))
        x = F.gelu(self.near(x))
        x = x + F.gelu(self.deep(x))
        return F.pixel_shuffle(self.out(x), 16 // CELL)

    def difference(self, guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """How far apart two latents look: squared error of thumbnails, mostly of their objects."""
        seen = self(truth)
        objects = (seen - seen[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1  # a corner is background
        return ((1 + OBJECT_WEIGHT * objects) * (self(guess) - seen).square()).mean()


def train_sight(runs: Path, minutes: float, vae: AutoencoderKL, device: torch.device, seed: int = 7) -> Sight:
    """A frozen `Sight` of this autoencoder's latents."""
    torch.manual_seed(seed)
    sight = Sight().to(device)
    phase = Phase(runs, "sight", sight, minutes, rate=1e-3, hold=0.3)
    if not phase.done:
        rng = np.random.default_rng([seed, phase.step])
        latents, small = _examples(vae, rng, device)
    for _ in phase:
        rows = torch.randint(len(latents), (BATCH,), device=device)
        noise = torch.randn_like(latents[rows]) * NOISE * torch.rand(BATCH, 1, 1, device=device)
        phase.update((sight(latents[rows] + noise) - small[rows]).square().mean())
    phase.use_average()
    return sight.eval().requires_grad_(False)


def _examples(
    vae: AutoencoderKL, rng: np.random.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    latents, small = [], []
    for _ in range(0, PICTURES, 64):
        pictures = sample_pictures(rng, 64, device, crowded=0.5)
        latents.append(encode(vae, pictures))
        small.append(F.avg_pool2d(pictures, CELL))
    return torch.cat(latents), torch.cat(small)
