"""Pictures and masks that are given in tests, and what pictures of earlier versions say of themselves."""

import numpy as np
from PIL import Image, ImageDraw


def pattern(size, seed=0):
    """Noise: no two pixels are alike, so that nothing hides a resize."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def drawn(width, height, seed):
    """A picture with slopes and edges."""
    y, x = np.mgrid[:height, :width]
    turn = np.random.default_rng(seed).uniform(0.05, 0.4, (3, 2))
    waves = [127 + 120 * np.sin(a * x + b * y) * np.sign(x + 2 * y - width) for a, b in turn]
    return Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8))


def box(size, *corners):
    """A mask with a white rectangle."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    return mask


def bar(size, width):
    """A mask with an upright bar, off the raster of 8 pixels."""
    return box(size, 17, 1, 16 + width, size[1] - 2)


EARLIER = ("task", "prompt", "seed", "steps", "guidance", "width", "height", "variant", "bundle", "flux_trt")
"""Parameters that stood in a picture before everything did."""
