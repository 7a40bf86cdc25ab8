"""FLUX.1 Fill: at every step the model sees the picture with a hole, and the hole.

Source: diffusers FluxFillPipeline.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.pictures import latents

Floats = npt.NDArray[np.float32]

GREY = 127.5
"""What the model sees in the hole: 0 in its own range of -1 to 1."""
Margins = tuple[int, int, int, int]
"""Pixels at the left, top, right and bottom."""


def holed(pixels: Floats, mask: Floats) -> Floats:
    """The picture [H, W, 3], 0..255, with grey where the mask [H, W] is 1."""
    hole = mask[..., None]
    return pixels * (1 - hole) + GREY * hole


def fine(mask: Floats, patch: int) -> Floats:
    """The mask in full, as channels: [H, W] -> packed [tokens, patch x patch]."""
    (height, width), side = mask.shape, patch // 2
    cells = mask.reshape(1, height // side, side, width // side, side).transpose(0, 2, 4, 1, 3)
    return latents.pack(cells.reshape(1, side * side, height // side, width // side))[0]


def outpaint(image: Image.Image, margins: Margins) -> tuple[Image.Image, Image.Image]:
    """The picture on a larger canvas, and the mask of what is new."""
    left, top, right, bottom = margins
    size = image.width + left + right, image.height + top + bottom
    canvas, mask = Image.new("RGB", size, (127, 127, 127)), Image.new("L", size, 255)
    canvas.paste(image, (left, top))
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return canvas, mask
