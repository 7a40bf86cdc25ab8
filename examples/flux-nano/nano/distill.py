"""Guidance distillation: the student does in one pass what guidance needs two passes of the teacher for.

FLUX.1-dev got its guidance input this way, and the value means the same here: 1 is the plain model, and
larger values follow the text further at the cost of variety.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from nano.dit import COMPILED, LOOKS, add_noise, embed, fast_math, frozen_copy, predict, sample_batch
from nano.latents import Latents
from nano.phase import Phase
from nano.sight import Sight
from nano.text import Encoders
from nano.vocabulary import T5_LENGTH

GUIDANCE = (1.0, 5.0)
PLAIN = 0.25  # share of guidance values that are exactly 1: the student must not forget what the teacher knew
BATCH = 64
LENGTHS = {20: 0.7, T5_LENGTH: 0.25, 64: 0.03, 512: 0.02}


def distill(
    runs: Path,
    minutes: float,
    teacher: FluxTransformer2DModel,
    data: Latents,
    encoders: Encoders,
    sight: Sight,
    device: torch.device,
    seed: int = 5,
) -> FluxTransformer2DModel:
    """A student of `teacher`, made from its weights, with a guidance input that means something."""
    torch.manual_seed(seed)
    teacher, student = frozen_copy(teacher), teacher
    phase = Phase(runs, "distill", student.train(), minutes, rate=4e-4, hold=0.3)
    compiled = torch.compile(student, dynamic=False)
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        batch, length = sample_batch(data, rng, BATCH, LENGTHS)
        pooled, text = embed(encoders, batch.texts, length)
        empty_pooled, empty_text = embed(encoders, [""], length)
        noisy, times, _ = add_noise(batch.latents)
        count = len(noisy)
        guidance = torch.empty(count, device=device).uniform_(*GUIDANCE)
        guidance[torch.rand(count, device=device) < PLAIN] = 1.0
        with fast_math(device):
            with torch.no_grad():
                plain = torch.ones_like(guidance)
                told = predict(teacher, noisy, times, plain, pooled, text, batch.reference).float()
                pooled_0, text_0 = empty_pooled.expand(count, -1), empty_text.expand(count, -1, -1)
                free = predict(teacher, noisy, times, plain, pooled_0, text_0, batch.reference).float()
                target = free + guidance[:, None, None] * (told - free)
            network = compiled if length in COMPILED and batch.reference is None else student
            velocity = predict(network, noisy, times, guidance, pooled, text, batch.reference)
        velocity, sigma = velocity.float(), times[:, None, None]
        looks = sight.difference(noisy - sigma * velocity, noisy - sigma * target)
        phase.update((velocity - target).square().mean() + LOOKS * looks)
    phase.use_average()
    return student.eval()
