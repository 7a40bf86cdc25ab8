"""A trajectory: where a batch of latents starts, which noise levels it passes, and what goes with it.

Every task ends in one of these, and one loop walks them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.pictures import latents

Floats = npt.NDArray[np.float32]
Solver = Literal["euler", "ab2"]
"""How a step follows the velocity: as it is, or as it and the one before say it goes on."""


@dataclass(frozen=True)
class Known:
    """What a mask leaves alone, each float32 [batch, tokens, channels]."""

    source: Floats
    """The latents that stay."""
    noise: Floats
    mask: Floats
    """1 where the picture is painted, 0 where it stays."""


@dataclass(frozen=True)
class Beside:
    """Reference pictures that are no part of the latents: the denoiser attends what a stage made of them."""

    packed: Floats
    """float32 [batch, tokens of all of them, channels]; there may be none."""
    grids: tuple[latents.Grid, ...]


@dataclass(frozen=True)
class Edit:
    """FlowEdit: how a picture's own latents move from one prompt to another."""

    source: Floats
    """The picture's latents, float32 [batch, tokens, channels]."""
    noise: Floats
    """float32 [draws, batch, tokens, channels]: `average` for each step, and one for the plain steps."""
    average: int
    plain: int
    """How many of the last steps sample plainly."""


@dataclass(frozen=True)
class Trajectory:
    """What a batch needs beside its text."""

    levels: Floats
    """Noise levels, [steps + 1]."""
    start: Floats
    """float32 [batch, tokens, channels] at `levels[0]`; reference pictures follow the target's tokens."""
    grids: tuple[latents.Grid, ...]
    """Of the target, then of the reference pictures."""
    beside: Beside | None = None
    """For a model that looks at its reference pictures with a stage of their own."""
    condition: Floats | None = None
    """What a model sees beside the latents: float32 [batch, tokens, condition channels]."""
    scale: float | None = None
    """Of true classifier-free guidance, whose negative prompts are the second half of the text."""
    known: Known | None = None
    solver: Solver = "euler"
    edit: Edit | None = None
    """With it, the source prompts are the first half of the text and the target prompts the second."""

    def __post_init__(self) -> None:
        if self.edit and (self.known or self.scale is not None):
            raise ValueError("an edit has neither a mask nor a negative prompt")
        if self.edit and self.solver != "euler":
            raise ValueError("an edit is walked by Euler's steps")

    @property
    def steps(self) -> int:
        """How often the denoiser's state moves."""
        return len(self.levels) - 1

    @property
    def copies(self) -> int:
        """How often each picture goes through the denoiser at once."""
        return 1 if self.edit is None and self.scale is None else 2

    @property
    def target(self) -> int:
        """Tokens of the target picture."""
        return self.grids[0][0] * self.grids[0][1]
