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
GUIDED = (
    0.4  # share of a batch that learns from the teacher; the rest has guidance 1 and learns from the pictures
)
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
        noisy, times, target = add_noise(batch.latents)
        count, guided = len(noisy), slice(0, round(len(noisy) * GUIDED))
        guidance = torch.ones(count, device=device)
        guidance[guided].uniform_(*GUIDANCE)
        reference = None if batch.reference is None else batch.reference[guided]
        with fast_math(device):
            with torch.no_grad():
                ones, seen = torch.ones_like(guidance[guided]), (noisy[guided], times[guided])
                told = predict(teacher, *seen, ones, pooled[guided], text[guided], reference).float()
                pooled_0, text_0 = (x.expand(len(ones), *x.shape[1:]) for x in embed(encoders, [""], length))
                free = predict(teacher, *seen, ones, pooled_0, text_0, reference).float()
                target[guided] = free + guidance[guided, None, None] * (told - free)
            network = compiled if length in COMPILED and batch.reference is None else student
            velocity = predict(network, noisy, times, guidance, pooled, text, batch.reference)
        velocity, plain = (
            velocity.float(),
            slice(guided.stop, None),
        )  # guided targets need not look like pictures
        guess = noisy[plain] - times[plain, None, None] * velocity[plain]
        looks = sight.difference(guess, batch.latents[plain])
        phase.update((velocity - target).square().mean() + (1 - GUIDED) * LOOKS * looks)
    phase.use_average()
    return student.eval()
