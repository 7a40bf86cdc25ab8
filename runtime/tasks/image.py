"""Image-to-image: start from a picture with noise on it, and walk only the rest of the way.

Small strengths and few steps refine a picture and keep its structure. Source: diffusers FluxImg2ImgPipeline.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def moves(steps: int, strength: float) -> int:
    """How many of `steps` are left to walk at a strength in 0..1; 0 when it is too small for a single one."""
    return steps - int(max(steps - min(steps * strength, steps), 0))


def noised(clean: Floats, noise: Floats, sigma: np.float32) -> Floats:
    """Latents at noise level `sigma`: the straight line of rectified flow (`scale_noise` in diffusers)."""
    return sigma * noise + (1 - sigma) * clean
