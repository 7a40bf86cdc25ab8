"""FlowEdit: change what a picture shows from one prompt to another, without inversion.

Source: Kulikov et al. 2024, arXiv 2412.08629, algorithm 1; defaults of its repository's FLUX example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Noise
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.sampling.noise import Generator
from flux_trt.runtime.sampling.trajectory import Edit, Trajectory

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FlowEdit:
    """How an edit goes."""

    sources: tuple[str, ...]
    """What each picture shows now."""
    source_guidance: float | None
    n_max: int
    """How many of the last steps are walked: fewer keep more of the picture."""
    n_min: int = 0
    """How many of the last steps sample plainly: more let the shapes change more."""
    n_avg: int = 1
    """Noises whose velocities are averaged in a step."""


def most_moves(steps: int) -> int:
    """`n_max` when it is not given: the share of the steps that the authors walk, 24 of 28 for FLUX.1-dev.

    Their repository has 28 and 24 as constants, so an edit of other steps begins at about the same noise
    level.
    """
    return max(1, round(steps * 24 / 28))


def trajectory(
    how: FlowEdit, levels: Floats, encoded: list[EncodedPicture], seeds: tuple[int, ...], rule: Noise
) -> Trajectory:
    """The trajectory of an edit.

    Args:
        how: its numbers.
        levels: the whole schedule, [steps + 1].
        encoded: the pictures; their modes are what is edited.
        seeds: one per picture.
        rule: how noise is drawn.
    """
    levels = levels[len(levels) - 1 - how.n_max :]
    draws = (how.n_max - how.n_min) * how.n_avg + (how.n_min > 0)
    source = np.stack([each.mode for each in encoded])
    noise = np.empty((draws, *source.shape), np.float32)
    for row, (seed, each) in enumerate(zip(seeds, encoded, strict=True)):
        generator = Generator(seed)
        for draw in range(draws):
            noise[draw, row] = generator.latents(rule, each.grid)
    edit = Edit(source, noise, how.n_avg, how.n_min)
    return Trajectory(levels, source, (encoded[0].grid,), edit=edit)
