"""A given picture as the VAE sees it: a normal distribution over its latents, or the middle of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.pictures import latents

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedPicture:
    """One encoded picture."""

    mode: Floats
    """Packed and scaled, float32 [tokens, channels]."""
    deviation: Floats | None
    """Standard deviation, likewise; None for an encoder that gives the mode alone."""
    grid: latents.Grid

    def sample(self, draw: Callable[[latents.Grid], Floats]) -> Floats:
        """Latents [tokens, channels] as diffusers' `retrieve_latents` draws them, or just the mode."""
        if self.deviation is None:
            return self.mode
        return self.mode + self.deviation * draw(self.grid)
