"""A reference picture that is kept whole: on a canvas of whole patches, which its reflection fills.

Source: diffusers Flux3ImageProcessor, after BFL's `reference_canvas` and `prepare_reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from flux_trt.runtime.bundle.rules import Canvas

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
BACK_OFF = 0.995
"""A scale that leaves a canvas too large is made smaller by this."""


@dataclass(frozen=True)
class Placed:
    """A picture on its canvas."""

    size: Size
    """Of the picture there."""
    canvas: Size

    @property
    def box(self) -> Box:
        """Where it lies: in the middle."""
        (width, height), (wide, high) = self.size, self.canvas
        left, top = (wide - width) // 2, (high - height) // 2
        return left, top, left + width, top + height


def place(rule: Canvas, size: Size, patch: int) -> Placed:
    """Where a picture of a size lies: shrunk only where its canvas would be too large."""
    scale = min(1.0, math.sqrt(rule.area / (size[0] * size[1])), rule.side / max(size))
    while True:
        width, height = (max(1, round(side * scale)) for side in size)
        wide, high = (min(rule.side, max(rule.least, -(-side // patch) * patch)) for side in (width, height))
        if wide * high <= rule.area:
            return Placed((width, height), (wide, high))
        scale *= BACK_OFF


def filled(rule: Canvas, given: Image.Image, patch: int) -> Image.Image:
    """The picture on its canvas, RGB."""
    found = place(rule, given.size, patch)
    if given.size != found.size:
        given = given.resize(found.size, Image.Resampling.LANCZOS)
    if found.size == found.canvas:
        return given
    left, top, right, bottom = found.box
    wide, high = found.canvas
    # A reflection leaves the edge itself out, which a picture of less than a patch has not enough of.
    mode: Literal["reflect", "symmetric"] = "reflect" if min(found.size) > patch else "symmetric"
    margins = (top, high - bottom), (left, wide - right), (0, 0)
    return Image.fromarray(np.pad(np.asarray(given.convert("RGB")), margins, mode=mode))
