"""What Fill and Canny see beside the noise, channel by channel.

FLUX.1 Fill has 64 channels of noise, 64 of the picture with a hole and 256 of the hole; FLUX.1 Canny has 64
of noise and 64 of edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from flux_trt.runtime.tasks.edges import canny
from nano.picture import SIDE, Jitter, draw
from nano.scene import blur, sample_split
from nano.vae import encode, pack, to_tensor

PICTURES = 16_000
VAGUE = 0.4  # share of captions with something left open: the model must read what stands beside
OUTSIDE = 0.3  # share of Fill's masks that leave a box and paint all around it
WHOLE = 0.1  # share of Fill's masks that leave nothing

Beside = Callable[[np.random.Generator, np.ndarray, AutoencoderKL, torch.device], torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """diffusers' pipeline, the transformer's input channels, and what it sees beside the noise."""

    pipeline: str
    channels: int
    beside: Beside


@dataclass(frozen=True)
class Examples:
    """Clean latents [N, 16, 64], what stands beside the noise [N, 16, channels - 64], and captions."""

    latents: torch.Tensor
    beside: torch.Tensor
    texts: list[str]


def sample_examples(
    variant: Variant, vae: AutoencoderKL, device: torch.device, rng: np.random.Generator
) -> Examples:
    """Random pictures of the training split, encoded once."""
    latents, beside, texts = [], [], []
    for start in range(0, PICTURES, 64):
        scenes = [sample_split(rng, held_out=False) for _ in range(min(64, PICTURES - start))]
        pictures = np.stack([draw(scene, Jitter.sample(rng, len(scene.objects))) for scene in scenes])
        latents.append(encode(vae, to_tensor(pictures, device)))
        beside.append(variant.beside(rng, pictures, vae, device))
        texts += [(blur(scene, rng) if rng.random() < VAGUE else scene).caption for scene in scenes]
    return Examples(torch.cat(latents), torch.cat(beside), texts)


def beside_fill(
    rng: np.random.Generator, pictures: np.ndarray, vae: AutoencoderKL, device: torch.device
) -> torch.Tensor:
    """The pictures with grey holes, and the holes: [B, 16, 64 + 256]. Source: diffusers FluxFillPipeline."""
    masks = torch.from_numpy(np.stack([_mask(rng) for _ in pictures])).to(device)
    holed = to_tensor(pictures, device) * (1 - masks[:, None])
    cells = masks.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).permute(0, 2, 4, 1, 3).flatten(1, 2)
    return torch.cat([encode(vae, holed), pack(cells)], dim=2)


def beside_canny(
    rng: np.random.Generator, pictures: np.ndarray, vae: AutoencoderKL, device: torch.device
) -> torch.Tensor:
    """The pictures' edges, white on black: [B, 16, 64]."""
    edges = np.stack([np.asarray(canny(Image.fromarray(picture))) for picture in pictures])
    return encode(vae, to_tensor(edges, device))


VARIANTS = {
    "fill": Variant("FluxFillPipeline", 384, beside_fill),
    "canny": Variant("FluxControlPipeline", 128, beside_canny),
}


def _mask(rng: np.random.Generator) -> np.ndarray:
    """f32 [64, 64]: 1 is painted."""
    if rng.random() < WHOLE:
        return np.ones((SIDE, SIDE), np.float32)
    height, width = rng.integers(SIDE // 4, SIDE + 1, size=2)
    top, left = rng.integers(SIDE - height + 1), rng.integers(SIDE - width + 1)
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[top : top + height, left : left + width] = 1
    return 1 - mask if rng.random() < OUTSIDE else mask
