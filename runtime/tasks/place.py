"""How a given picture lies on what is painted, and what is given back of it.

Source: diffusers VaeImageProcessor `get_crop_region`, `_resize_and_fill`, `_resize_and_crop` and
`apply_overlay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""
LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Whole:
    """All of it, resized to the painted size where that differs, as diffusers does."""

    def onto(self, image: Image.Image, size: Size) -> Image.Image:
        """The picture, or a mask or control picture of it, at the painted size."""
        return image if image.size == size else image.resize(size, LANCZOS)

    def back(self, painted: Image.Image, original: Image.Image, mask: Image.Image | None) -> Image.Image:
        """What was painted; with a mask "L" of the original's size, laid over the original."""
        if mask is None:
            return painted
        return overlay(self.onto(painted, original.size), original, mask)


@dataclass(frozen=True)
class Padded:
    """Pixel by pixel, its outermost pixels repeated up to whole patches; what was added is cut off again."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def to(cls, own: Size, size: Size, left: bool, top: bool) -> Padded:
        """From its own size to the painted one, at the right and bottom, or at the left and top."""
        wide, high = size[0] - own[0], size[1] - own[1]
        return cls(wide * left, high * top, wide * (not left), high * (not top))

    def onto(self, image: Image.Image, size: Size) -> Image.Image:
        """See `Whole`."""
        own = size[0] - self.left - self.right, size[1] - self.top - self.bottom
        pixels = np.asarray(Whole().onto(image, own))
        around = [(self.top, self.bottom), (self.left, self.right), *[(0, 0)] * (pixels.ndim - 2)]
        return Image.fromarray(np.pad(pixels, around, mode="edge"))

    def back(self, painted: Image.Image, original: Image.Image, mask: Image.Image | None) -> Image.Image:
        """See `Whole`."""
        inside = self.left, self.top, painted.width - self.right, painted.height - self.bottom
        return Whole().back(painted.crop(inside), original, mask)


@dataclass(frozen=True)
class Region:
    """A part of it around the mask, painted larger and laid back; the result has the original's size."""

    box: Box
    own: Size

    @classmethod
    def around(cls, mask: Image.Image, size: Size, pad: int) -> Region:
        """All that is not black, `pad` pixels more, in the painted size's aspect ratio as far as it fits."""
        rows, columns = (np.flatnonzero(np.asarray(mask).any(axis=axis)) for axis in (1, 0))
        (width, height), ratio = mask.size, size[0] / size[1]
        left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, width)
        top, bottom = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, height)
        if (right - left) / (bottom - top) > ratio:
            top, bottom = _widened(top, bottom, (right - left) / ratio, height)
        else:
            left, right = _widened(left, right, (bottom - top) * ratio, width)
        return cls((left, top, right, bottom), mask.size)

    def onto(self, image: Image.Image, size: Size) -> Image.Image:
        """See `Whole`."""
        return _filled(Whole().onto(image, self.own).crop(self.box), size)

    def back(self, painted: Image.Image, original: Image.Image, mask: Image.Image | None) -> Image.Image:
        """See `Whole`; there is a mask."""
        left, top, right, bottom = self.box
        canvas = Image.new("RGB", original.size)
        canvas.paste(_cropped(painted, (right - left, bottom - top)), (left, top))
        return canvas if mask is None else overlay(canvas, original, mask)


Place: TypeAlias = Whole | Padded | Region


def overlay(painted: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The painted picture where the mask "L" is white, the original's own pixels where it is black.

    Greys mix both, in premultiplied colours as `apply_overlay` has them.
    """
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    found = painted.convert("RGBA")
    found.alpha_composite(kept.convert("RGBA"))
    return found.convert("RGB")


def _widened(first: int, last: int, length: float, most: int) -> tuple[int, int]:
    """A stretch of pixels made so long, moved or cut to lie in 0..most."""
    more = int(length - (last - first))
    first, last = first - more // 2, last + more - more // 2
    over = max(last - most, 0)
    first, last = first - over, last - over
    under = max(-first, 0)
    return first + under, min(last + under, most)


def _filled(image: Image.Image, size: Size) -> Image.Image:
    """All of it inside of a size, its outermost lines drawn out to fill the rest."""
    (width, height), ratio, own = size, size[0] / size[1], image.width / image.height
    inner = (
        width if ratio < own else image.width * height // image.height,
        height if ratio >= own else image.height * width // image.width,
    )
    resized, found = image.resize(inner, LANCZOS), Image.new(image.mode, size)
    x, y = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    found.paste(resized, (x, y))
    if ratio < own and y > 0:
        found.paste(resized.resize((width, y), box=(0, 0, width, 0)), (0, 0))
        found.paste(resized.resize((width, y), box=(0, inner[1], width, inner[1])), (0, y + inner[1]))
    elif ratio > own and x > 0:
        found.paste(resized.resize((x, height), box=(0, 0, 0, height)), (0, 0))
        found.paste(resized.resize((x, height), box=(inner[0], 0, inner[0], height)), (x + inner[0], 0))
    return found


def _cropped(image: Image.Image, size: Size) -> Image.Image:
    """Made as large as a size needs, and its middle."""
    (width, height), ratio, own = size, size[0] / size[1], image.width / image.height
    inner = (
        width if ratio > own else image.width * height // image.height,
        height if ratio <= own else image.height * width // image.width,
    )
    found = Image.new("RGB", size)
    found.paste(image.resize(inner, LANCZOS), (width // 2 - inner[0] // 2, height // 2 - inner[1] // 2))
    return found
