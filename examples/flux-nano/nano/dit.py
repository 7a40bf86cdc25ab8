"""The diffusion transformer: rectified flow, from captions, or from instructions and a reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from nano.bundle import new_transformer
from nano.latents import Batch, Latents
from nano.phase import Phase
from nano.sight import Sight
from nano.text import Encoders
from nano.vocabulary import T5_LENGTH

BATCH = 64
# T5 tokens and the shares of steps read at that length. The longest text has 20, the rest is padding: short
# sequences save time, and the others teach that padding means nothing, up to the 512 of diffusers' default.
LENGTHS = {20: 0.84, T5_LENGTH: 0.1, 64: 0.04, 512: 0.02}
COMPILED = (20,)
NEAR_MIDDLE, NEAR_NOISE = 0.5, 2.5  # centres of the times, as logits
LOOKS = 15.0  # weight of how the guessed picture looks
PURE_NOISE = 0.1  # share of times that are exactly 1: where every sampler begins, and no logit gets to


def train_dit(
    runs: Path,
    minutes: float,
    data: Latents,
    encoders: Encoders,
    sight: Sight,
    device: torch.device,
    start: FluxTransformer2DModel | None = None,
    seed: int = 4,
) -> FluxTransformer2DModel:
    """The transformer before guidance is distilled into it, trained from nothing or on from `start`."""
    torch.manual_seed(seed)
    model = (start or new_transformer()).to(device).train()
    phase = Phase(runs, "dit", model, minutes, rate=7e-4, hold=0.15)
    compiled = torch.compile(model, dynamic=False)
    rng = np.random.default_rng([seed, phase.step])
    for _ in phase:
        batch, length = sample_batch(data, rng)
        pooled, text = embed(encoders, batch.texts, length)
        noisy, time, target = add_noise(batch.latents)
        guidance = torch.ones(len(noisy), device=device)  # no guidance yet: distillation gives it a meaning
        with fast_math(device):
            # torch 2.13 compiles edits on a CPU into something that gives nan.
            network = compiled if length in COMPILED and batch.reference is None else model
            velocity = predict(network, noisy, time, guidance, pooled, text, batch.reference)
        guess = noisy - time[:, None, None] * velocity.float()
        loss = (velocity.float() - target).square().mean() + LOOKS * sight.difference(guess, batch.latents)
        phase.update(loss)
    phase.use_average()
    return model.eval()


def sample_batch(
    data: Latents, rng: np.random.Generator, size: int = BATCH, lengths: dict[int, float] = LENGTHS
) -> tuple[Batch, int]:
    """A batch of captions or of edits, and the T5 length to read it with; captions keep short sequences."""
    length = int(rng.choice([*lengths], p=[*lengths.values()]))
    count = max(4, size * T5_LENGTH // length) if length > T5_LENGTH else size
    return (data.edits if rng.random() < data.edit_share else data.captioned)(rng, count), length


@contextmanager
def fast_math(device: torch.device) -> Iterator[None]:
    """bf16 arithmetic; on a CPU plain attention, whose backward is faster at these lengths."""
    backends = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(backends):
        yield


@torch.no_grad()
def embed(encoders: Encoders, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(pooled [B, 64], text [B, length, 128]) in f32, encoded in bf16."""
    with torch.autocast(next(encoders.parameters()).device.type, torch.bfloat16):
        pooled, text = encoders.embed(texts, length)
    return pooled.float(), text.float()


def add_noise(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noisy latents, times [B] in 0..1, velocities to learn): straight lines from picture to noise."""
    count, device = len(latents), latents.device
    # Half of the times lie near pure noise: only there must colours and shapes be read from the text, because
    # from about 0.88 down they can be seen in the noisy latents.
    centre = torch.where(torch.rand(count, device=device) < 0.5, NEAR_NOISE, NEAR_MIDDLE)
    times = torch.sigmoid(torch.randn(count, device=device) + centre)
    uniform = torch.rand(count, device=device)
    times = torch.where(torch.rand(count, device=device) < 0.1, uniform, times)
    times = torch.where(torch.rand(count, device=device) < PURE_NOISE, torch.ones_like(times), times)
    noise = torch.randn_like(latents)
    mix = times[:, None, None]
    return (1 - mix) * latents + mix * noise, times, noise - latents


def predict(
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    guidance: torch.Tensor,
    pooled: torch.Tensor,
    text: torch.Tensor,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Velocity [B, L, 64]. Reference tokens follow the picture's own; the first axis of their ids is 1."""
    ids = image_ids(latents, 0)
    tokens = latents
    if reference is not None:
        ids = torch.cat([ids, image_ids(reference, 1)])
        tokens = torch.cat([latents, reference], dim=1)
    velocity = model(
        hidden_states=tokens,
        timestep=times,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=text.device),
        img_ids=ids,
        return_dict=False,
    )[0]
    return velocity[:, : latents.shape[1]]


def image_ids(tokens: torch.Tensor, first: int) -> torch.Tensor:
    """(first, y, x) of each token of a square picture, [L, 3]."""
    side = round(tokens.shape[1] ** 0.5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack([torch.full_like(rows, first), rows, columns], dim=-1)
    return ids.reshape(-1, 3).to(tokens.device, torch.float32)


def frozen_copy(model: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The model as it is now, not to be trained further."""
    return copy.deepcopy(model).eval().requires_grad_(False)
