"""Masked painting with a model that was not made for it: what the mask leaves alone is put back every step.

Source: diffusers FluxInpaintPipeline.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Noise
from flux_trt.runtime.pictures import latents

Floats = npt.NDArray[np.float32]


def coarse(mask: Floats, patch: int, rule: Noise) -> Floats:
    """The mask of the latents: [H, W] of 0 and 1 -> packed [tokens, channels], one value per latent pixel.

    A latent pixel takes the mask's value at its upper left corner, as torch's nearest interpolation does.
    """
    side = patch // rule.cell
    pixels = mask[::side, ::side]
    return latents.pack(np.broadcast_to(pixels, (1, rule.channels, *pixels.shape)), rule.cell)[0]
