"""Steps of the denoising loop, as they can be watched: the latents now, and the picture they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.backends.protocols import Buffer
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.errors import PaintError
from flux_trt.runtime.pictures.latents import Grid
from flux_trt.runtime.sampling.loop import Loop
from flux_trt.runtime.sampling.trajectory import Trajectory
from flux_trt.runtime.turn import Turn

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """What a step of the denoising loop leaves."""

    index: int
    """1 for the first step."""
    steps: int
    """How many there are."""
    sigma: float
    """Noise level of the latents now."""
    latents: Buffer
    """float32 [batch, tokens, channels]; overwritten by the step after the next."""
    grid: Grid
    """Of the target picture, (rows, columns), for `Pipeline.decode`."""
    pictures: range
    """Which pictures of the request the rows are."""
    _before: tuple[float, Buffer] = field(repr=False)
    """Noise level and latents that the step has started from."""
    _at: Callable[[], int] = field(repr=False)
    """The step where the loop is now."""

    @cached_property
    def predicted(self) -> Floats:
        """The clean latents that the loop is heading for: what it would end at if the velocity stayed.

        float32 [batch, target's tokens, channels] on the host, without reference pictures: `decode` makes a
        preview of it. Computed when first asked for, which on a GPU waits for the step and copies twice.

        Source: diffusers FlowMatchEulerDiscreteScheduler.step, `x0 = sample - current_sigma * model_output`.

        Raises:
            PaintError: the loop has gone on, and what the step started from is overwritten.
        """
        if self._at() != self.index:
            raise PaintError(
                f"step {self.index} is over, the loop is at {self._at()}; take `predicted` before the next"
            )
        rows, tokens = len(self.pictures), self.grid[0] * self.grid[1]
        sigma, buffer = self._before
        now, before = (each.numpy()[:rows, :tokens] for each in (self.latents, buffer))
        if self.sigma in (0.0, sigma):
            return np.array(now)
        share = np.float32(self.sigma / (self.sigma - sigma))
        return np.asarray(now - share * (now - before), np.float32)


class Walk:
    """A loop that has begun, on its way: a step is queued, then looked at."""

    def __init__(self, loop: Loop, trajectory: Trajectory, precision: Precision, first: int = 0) -> None:
        """Queue nothing yet.

        Args:
            loop: lent to this walk.
            trajectory: that it has begun with.
            precision: of the denoiser, for the error.
            first: picture of the request.
        """
        self.trajectory = trajectory
        self.done = 0
        """Steps that are queued."""
        self._steps, self._precision = loop.steps(), precision
        self._pictures = range(first, first + len(trajectory.start))

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.trajectory.steps

    def queue(self) -> None:
        """Queue the next step."""
        self._origin, self._now = next(self._steps)
        self.done += 1

    def step(self) -> Step:
        """The step that was queued last, and has run or is sure to.

        Raises:
            PaintError: latents that are not finite. On a GPU they are looked at after the last step only.
        """
        index, levels = self.done, self.trajectory.levels
        if self._now.on_host or index == self.steps:
            expect_finite(self._now, index, self.steps, self._precision)
        return Step(
            index=index,
            steps=self.steps,
            sigma=float(levels[index]),
            latents=self._now,
            grid=self.trajectory.grids[0],
            pictures=self._pictures,
            _before=(float(levels[index - 1]), self._origin),
            _at=lambda: self.done,
        )


def walked(
    loop: Loop, trajectory: Trajectory, turn: Turn, precision: Precision, first: int = 0
) -> Iterator[Step]:
    """The steps of a `Walk`, each queued in a turn of its own.

    Raises:
        PaintError: as `Walk.step`.
    """
    walk = Walk(loop, trajectory, precision, first)
    for _ in range(walk.steps):
        with turn:
            walk.queue()
            step = walk.step()
        yield step


def expect_finite(found: Buffer, index: int, steps: int, precision: Precision) -> None:
    """Look at the latents after a step.

    Raises:
        PaintError: some are not finite.
    """
    if not np.isfinite(found.numpy()).all():
        way_out = "build the bundle in a wider precision (--precision bf16 or fp32)"
        if precision in ("bf16", "fp32"):
            way_out = "nothing overflows in this precision: check the checkpoint with flux-export verify"
        raise PaintError(f"latents are not finite after step {index} of {steps} in {precision}; {way_out}")
