"""Masks that are given: blurred as asked, and refused where they would paint nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from flux_trt.runtime.errors import RequestError

Floats = npt.NDArray[np.float32]
GREYS = 32, 224
"""Between black and white, beyond what a lossy file makes of them."""
SHARE = 0.05
"""Of a mask's pixels that may be grey, as soft edges are, without a word."""

_log = logging.getLogger(__name__)


def blurred(mask: Image.Image, radius: float) -> Image.Image:
    """A mask with soft edges. Source: diffusers VaeImageProcessor.blur."""
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def expect_white(mask: Image.Image, which: str) -> None:
    """Refuse a mask without a white pixel.

    Args:
        mask: "L", as it was read.
        which: the mask in words, as in "mask 2 of 3".

    Raises:
        RequestError: it would paint nothing.
    """
    brightest = mask.getextrema()[1]
    if brightest < 128:
        more = " (an array of 0 and 1 must be multiplied by 255)" if brightest == 1 else ""
        raise RequestError(
            f"{which} would paint nothing: its brightest value is {brightest} of 255{more}; "
            "make white, 128 or more, what is to be painted"
        )
    values = np.asarray(mask)
    share = float(((values >= GREYS[0]) & (values < GREYS[1])).mean())
    if share > SHARE:
        _log.warning(
            "%.0f %% of %s is grey; it paints where it is 128 or more, with hard edges: "
            "--mask-blur makes soft ones",
            *(100 * share, which),
        )


def expect_painted(
    mask: Floats, which: str, coarse: Callable[[Floats], Floats] | None, cell: int, blur: float
) -> None:
    """Refuse a mask of which nothing is left at the size that is painted.

    Args:
        mask: [height, width] of 0 and 1, at that size.
        which: the mask in words.
        coarse: what the task makes of it; None: it sees every pixel.
        cell: pixels of a latent's side, for the message.
        blur: that it was blurred by.

    Raises:
        RequestError: it would paint nothing.
    """
    height, width = mask.shape
    if not mask.any():
        why = f" after a blur of {blur:g}" if blur else ""
        raise RequestError(
            f"{which} would paint nothing: at {width}x{height}{why} no pixel of it is half white; "
            "make its strokes wider"
        )
    if coarse is not None and not coarse(mask).any():
        raise RequestError(
            f"{which} would paint nothing: one pixel in {cell} each way is read of it, and its strokes are "
            f"finer than these {cell} pixels and miss them all; make them wider"
        )
    if mask.all():
        _log.warning("%s is white everywhere: the whole picture is painted", which)


def tell_unused_blur() -> None:
    """A line for a blur that changes next to nothing."""
    _log.warning("--mask-blur softens where the picture is put back; give --paste or --mask-crop with it")
