"""A given picture as the VAE sees it: a normal distribution over its latents."""

from __future__ import annotations

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
    deviation: Floats
    """Standard deviation, likewise."""
    grid: latents.Grid

    def sample(self, noise: Floats) -> Floats:
        """Latents as diffusers' `retrieve_latents` draws them; they and the noise [tokens, channels]."""
        return self.mode + self.deviation * noise
