"""A given picture as the VAE sees it: a normal distribution over its latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flux_trt.runtime import latents
from flux_trt.runtime.noise import Generator

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """One encoded picture."""

    mode: Floats
    """Packed and scaled, float32 [tokens, channels]."""
    deviation: Floats
    """Standard deviation, likewise."""
    grid: latents.Grid

    def sample(self, generator: Generator) -> Floats:
        """Latents drawn as diffusers' `retrieve_latents` draws them, float32 [tokens, channels]."""
        return self.mode + self.deviation * generator.latents(self.grid, self.mode.shape[1])
