"""The schedule: which noise levels (sigmas) a run visits.

The numbers are those of diffusers' FluxPipeline with FlowMatchEulerDiscreteScheduler, in float32 where
those are float32, so that the same seed paints the same picture.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.manifest import Scheduler

Floats = npt.NDArray[np.float32]


def sigmas(scheduler: Scheduler, steps: int, tokens: int) -> Floats:
    """Noise levels from 1 down to 0, float32 [steps + 1].

    With dynamic shifting (FLUX.1-dev) more tokens move the levels up, because larger pictures need more
    noise to hide the same structure (Esser et al. 2024, section 5.3.2); schnell has one plain shift.

    Args:
        scheduler: the numbers of the bundle.
        steps: how often the denoiser runs, at least 1.
        tokens: of the target picture alone, without reference pictures.
    """
    levels: Floats = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)
    if scheduler.use_dynamic_shifting:
        shift = np.float32(math.exp(_mu(scheduler, tokens)))
        shifted = shift / (shift + (1 / levels - 1))
    else:
        shift = np.float32(scheduler.shift)
        shifted = shift * levels / (1 + np.float32(scheduler.shift - 1) * levels)
    return np.append(shifted, 0).astype(np.float32)


def timesteps(levels: Floats) -> Floats:
    """What the conditioner is told: float32 [steps], `levels` without its final 0.

    diffusers carries timesteps as 1000 x sigma and divides again, which may move the last bit.
    """
    thousand = np.float32(1000)
    return levels[:-1] * thousand / thousand


def _mu(scheduler: Scheduler, tokens: int) -> float:
    """diffusers' `calculate_shift`: a line through (base tokens, base shift) and (max tokens, max shift)."""
    slope = (scheduler.max_shift - scheduler.base_shift) / (
        scheduler.max_image_seq_len - scheduler.base_image_seq_len
    )
    return tokens * slope + (scheduler.base_shift - slope * scheduler.base_image_seq_len)
