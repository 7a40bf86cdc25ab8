"""The schedule: which noise levels (sigmas) a run visits.

The numbers are those of diffusers' pipelines with FlowMatchEulerDiscreteScheduler, in float32 where those are
float32, so that the same seed paints the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Constant, Empirical, Exponential, Line, Schedule
from flux_trt.runtime.sampling.rounding import rounded

Floats = npt.NDArray[np.float32]


def sigmas(rule: Schedule, steps: int, tokens: int, given: Sequence[float] | None = None) -> Floats:
    """Noise levels from 1 down to 0, float32 [steps + 1].

    Most models move the levels up for more tokens, because larger pictures need more noise to hide the same
    structure (Esser et al. 2024, section 5.3.2).

    Args:
        rule: of the bundle.
        steps: how often the denoiser runs in the whole schedule, at least 1.
        tokens: of the target picture alone, without reference pictures.
        given: as many levels as steps, before the shift and without the final 0; None: evenly spaced.
    """
    even = np.linspace(1.0, 1.0 / steps, steps) if given is None else np.array(given)
    levels: Floats = even.astype(np.float32)
    if isinstance(rule, Constant):
        shifted = np.float32(rule.shift) * levels / (1 + np.float32(rule.shift - 1) * levels)
    else:
        shift = np.float32(math.exp(mu(rule, steps, tokens)))
        shifted = shift / (shift + (1 / levels - 1))
    return np.append(shifted, 0).astype(np.float32)


def timesteps(levels: Floats, rule: Schedule | None = None) -> Floats:
    """What the model is told: float32 [steps], `levels` without its final 0.

    diffusers carries timesteps as 1000 x sigma and divides again, which may move the last bit.
    """
    thousand = np.float32(1000)
    return rounded(levels[:-1], rule.round if rule else None) * thousand / thousand


def targets(levels: Floats, rule: Schedule | None = None) -> Floats:
    """The times that steps jump to, as `timesteps` tells them: float32 [steps], 0 last."""
    return np.append(timesteps(levels, rule)[1:], 0).astype(np.float32)


def mu(rule: Exponential | Empirical, steps: int, tokens: int) -> float:
    """The logarithm of the shift: diffusers' `calculate_shift`, or its `compute_empirical_mu`."""
    if isinstance(rule, Exponential):
        (first, last), (low, high) = rule.tokens, rule.mu
        slope = (high - low) / (last - first)
        return tokens * slope + (low - slope * first)
    many = _on(rule.many, tokens)
    if tokens > rule.large:
        return many
    slope = (many - _on(rule.few, tokens)) / float(rule.many.steps - rule.few.steps)
    return slope * steps + (many - float(rule.many.steps) * slope)


def _on(line: Line, tokens: int) -> float:
    return line.slope * tokens + line.offset
