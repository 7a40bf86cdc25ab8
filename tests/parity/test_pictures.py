"""Whole pictures against diffusers' FluxPipeline: same weights, same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from flux_trt.runtime import Pipeline

Get = Callable[..., Path]
PROMPTS = (
    "a red circle at the top left on a white background",
    "a blue square in the center on a green background",
)


def diffusers_pictures(
    folder: Path, prompts: tuple[str, ...], size: tuple[int, int], steps: int, guidance: float, seed: int
) -> np.ndarray:
    pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    found = pipe(
        list(prompts),
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=seeds,
        max_sequence_length=32,
        output_type="np",
    )
    return (found.images * 255).round().astype(np.uint8)


def agreement(ours: list, theirs: np.ndarray) -> float:
    """Share of values within 1/255."""
    difference = np.abs(np.stack([np.asarray(image) for image in ours]).astype(int) - theirs)
    return float((difference <= 1).mean())


@pytest.mark.parametrize(
    ("name", "size", "steps", "guidance"),
    [
        ("flux-nano", (64, 64), 12, 3.5),
        ("flux-nano", (96, 48), 4, 1.0),
        ("flux-nano", (48, 128), 20, 2.0),
        ("dev-like", (80, 64), 7, 5.0),
        ("schnell-like", (64, 64), 4, 0.0),
        ("schnell-like", (32, 112), 1, 0.0),
    ],
)
def test_fp32_pictures_equal_diffusers(
    checkpoint: Get, bundle: Get, name: str, size: tuple[int, int], steps: int, guidance: float
) -> None:
    theirs = diffusers_pictures(checkpoint(name), PROMPTS, size, steps, guidance, seed=7)
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        asked = {"guidance": guidance} if pipeline.bundle.manifest.takes("guidance") else {}
        ours = pipeline.generate(PROMPTS, size=size, steps=steps, seed=7, **asked)
    assert [image.size for image in ours] == [size, size]
    assert agreement(ours, theirs) >= 0.999
    assert theirs.std() > 1, "a flat picture would agree with anything"


def test_fp16_pictures_are_close(bundle: Get) -> None:
    pictures = {}
    for precision in ("fp32", "fp16"):
        with Pipeline.load(bundle("flux-nano", precision), "onnxruntime") as pipeline:
            pictures[precision] = np.stack(
                [np.asarray(i) for i in pipeline.generate(PROMPTS, steps=12, seed=3)]
            )
    error = np.mean((pictures["fp32"].astype(float) - pictures["fp16"]) ** 2)
    assert error > 0
    assert 10 * np.log10(255**2 / error) >= 35
