"""The mask in a picture: its luminance, or what its transparency says.

Painting programs save masks in several ways, and which one it is can be told from the colours:

* nothing is transparent: white is painted, black stays; greys count as white from a half on
* black and white on transparent: white is painted, the rest stays
* one colour on transparent, whatever the colour: strokes; what is opaque is painted
* any other picture with transparent parts: a picture with a hole; what is transparent is painted
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
from PIL import Image

ONE = 16
"""Levels of 255 within which colours are one: what a soft brush and lossy WebP leave of it."""
ENDS = 0.9
"""Share of the visible pixels that are black or white in a mask of these two; the rest are its soft edges."""
MOST = 0.995
"""Share of the visible pixels that have the colour of strokes in one colour."""

_log = logging.getLogger(__name__)


def strokes(image: Image.Image) -> Image.Image:
    """The mask, "L": 255 is painted anew, 0 stays.

    Args:
        image: eight bits a value. Where it has transparency, a line is logged that says how it was read.
    """
    if not image.has_transparency_data:
        return image.convert("L")
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() == 255:
        return image.convert("RGB").convert("L")
    seen = pixels[..., :3][alpha >= min(128, max(int(alpha.max()), 1))].astype(int)
    black, white = (_near(seen, level) for level in (0, 255))
    if black.any() and white.any() and (black | white).mean() >= ENDS:
        _log.warning("the mask is black and white on transparent: white is painted, the rest stays")
        over = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return over.convert("L")
    if not len(seen) or _near(seen, np.median(seen, axis=0)).mean() >= MOST:
        _log.warning("the mask has one colour on transparent: what is opaque is painted")
        return Image.fromarray(alpha)
    _log.warning("the mask is a picture with transparent parts: these are painted")
    return Image.fromarray(255 - alpha)


def _near(colours: npt.NDArray[np.int_], level: object) -> npt.NDArray[np.bool_]:
    """Which colours [N, 3] are near one."""
    return np.asarray((np.abs(colours - np.asarray(level)) <= ONE).all(axis=-1))
