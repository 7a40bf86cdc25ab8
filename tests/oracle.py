"""Pictures by diffusers' pipelines, and scenes and masks to give them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw

PROMPT = "a red circle at the top left on a white background"
OTHER = "a blue square in the center on a green background"
SEED = 7


def scene(size: tuple[int, int], colour: str = "red") -> Image.Image:
    """A picture with edges, a gradient and noise."""
    rng = np.random.default_rng(3)
    ramp = np.linspace(60, 220, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    image = Image.fromarray((ramp + rng.normal(0, 6, ramp.shape)).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=colour)
    return image


def hole(size: tuple[int, int]) -> Image.Image:
    """A mask whose border is on no grid."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse((5, 9, size[0] - 20, size[1] - 11), fill=255)
    return mask


def theirs(folder: Path, pipeline: str, size: tuple[int, int], seed: int = SEED, **asked: Any) -> np.ndarray:
    pipe = getattr(diffusers, pipeline).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if "max_area" in inspect.signature(pipe.__call__).parameters:
        asked["max_area"] = size[0] * size[1]
    found = pipe(
        width=size[0],
        height=size[1],
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=32,
        output_type="np",
        **asked,
    )
    return (found.images[0] * 255).round().astype(np.uint8)


def agreement(ours: Image.Image, expected: np.ndarray) -> float:
    """Share of values within 1/255."""
    assert expected.std() > 1, "a flat picture would agree with anything"
    assert np.asarray(ours).shape == expected.shape
    return float((np.abs(np.asarray(ours).astype(int) - expected) <= 1).mean())
