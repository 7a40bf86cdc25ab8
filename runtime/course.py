"""One picture that is painted a step at a time, so that others, at steps of their own, share its runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from flux_trt.runtime.backends.protocols import Buffer
from flux_trt.runtime.painted import Painted
from flux_trt.runtime.sampling.together import Waiting
from flux_trt.runtime.step import Step, Walk


@dataclass(eq=False)
class Course:
    """A picture on its way from noise; made by `Stepwise.begin`.

    Between its steps it may stay as long as it likes, or be dropped, which frees what it holds.
    """

    walk: Walk
    waiting: Waiting
    place: Hashable
    """Courses of different places share no run."""
    rows: int
    """Of the denoiser, at most, that it takes in a step."""
    _finish: Callable[[Buffer], Painted]
    step: Step | None = field(default=None, init=False)
    """The last one that was walked; `step.predicted` is a preview's latents."""

    @property
    def left(self) -> int:
        """Steps to go."""
        return self.walk.steps - self.walk.done

    def finish(self) -> Painted:
        """Decode the picture, once no step is left.

        Raises:
            ValueError: there are steps left.
            BackendError: the decoder failed.
        """
        if self.left or self.step is None:
            raise ValueError(f"{self.left} steps are left; walk them with Stepwise.step")
        return self._finish(self.step.latents)
