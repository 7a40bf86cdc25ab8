"""Masked painting with a model that was not made for it: what the mask leaves alone is put back every step.

Sources: diffusers FluxInpaintPipeline; Flux2KleinInpaintPipeline, for which the picture is a reference, too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flux_trt.runtime.bundle.rules import Inpaint, Noise
from flux_trt.runtime.pictures import latents

Floats = npt.NDArray[np.float32]


def coarse(mask: Floats, patch: int, rule: Noise, how: Inpaint) -> Floats:
    """The mask of the latents: [H, W] of 0 and 1 -> packed [tokens, channels], one value per latent pixel.

    A latent pixel takes the mask's value at its upper left corner, as torch's nearest interpolation does, or
    the mean of the four pixels around its middle, as the bilinear one does for an even number of pixels.
    """
    side = patch // rule.cell
    if how.mask == "nearest":
        pixels = mask[::side, ::side]
    else:
        below, above = slice(side // 2 - 1, None, side), slice(side // 2, None, side)
        corners = [mask[y, x] for y in (below, above) for x in (below, above)]
        pixels = np.mean(corners, axis=0, dtype=np.float32)
    return latents.pack(np.broadcast_to(pixels, (1, rule.channels, *pixels.shape)), rule.cell)[0]
