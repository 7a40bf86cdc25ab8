"""Latents of whole runs against diffusers' FluxPipeline, before the decoder rounds them to pixels."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from flux_trt.runtime import Pipeline
from flux_trt.runtime.sampling import noise, schedule

PROMPTS = ["", "Ünïcödé 🎨 <|endoftext|> </s>", "longer than both text encoders read " * 40]
SEEDS, STEPS, GRID = (11, 12, 13), 5, (3, 4)


@pytest.mark.parametrize("name", ["flux-nano", "schnell-like"])
def test_latents_of_unusual_prompts_in_one_batch(checkpoint, bundle, name):
    theirs = FluxPipeline.from_pretrained(checkpoint(name), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    with Pipeline.load(bundle(name), "onnxruntime", device="cpu") as mine:
        contract = mine.bundle.manifest
        guidance = 2.5 if contract.takes("guidance") else None
        levels = schedule.sigmas(contract.schedule, STEPS, GRID[0] * GRID[1])
        start = noise.draw(contract.model.noise, SEEDS, GRID)
        conditions = mine.condition(mine.encode(PROMPTS), levels, guidance)
        *_, last = mine.denoise(start, levels, conditions, GRID)
        found = last.latents.numpy()
    expected = theirs(
        PROMPTS,
        height=16 * GRID[0],
        width=16 * GRID[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance or 0.0,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        max_sequence_length=contract.tokenizers["t5"].pad.most,
        output_type="latent",
    ).images.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
