"""The size that is painted, and what it does to given pictures: nothing is stretched in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

MOST = 2048 * 2048
"""Pixels of a given picture that is painted at its own size without being told to: 16,384 tokens. FLUX.1 was
trained at a quarter of it and is said to work up to half of it (Black Forest Labs: 0.1 to 2 megapixels), and
cameras have many times as much."""
MANY = 2048 * 1024
"""Pixels from which a line says what a size takes."""
USUAL = 4
"""Multiples that a prompt takes of a window that is as long as its prompt."""
NOTICED = 0.01
"""Stretch that is said."""

_log = logging.getLogger(__name__)


def own(manifest: Manifest, picture: Image.Image, exact: bool) -> Size:
    """The size at which a given picture is painted where none is asked for: its own in whole patches.

    Args:
        manifest: of the bundle.
        picture: that is given.
        exact: patches that hold all of it; else its sides are cut down, as diffusers does.

    Raises:
        RequestError: a picture that is too small, or so large that its size must be asked for.
    """
    (width, height), patch, sides = picture.size, manifest.model.patch, manifest.sizes
    if not exact and min(width, height) < sides.smallest:
        raise RequestError(
            f"the picture has {width}x{height} pixels and each side needs at least {sides.smallest}; "
            "give a larger one, or a --size to scale it to"
        )
    if width * height > MOST or max(width, height) > sides.largest:
        near = _shaped((width, height), patch, MANY // 2)
        raise RequestError(
            f"the picture has {said((width, height), manifest)}; pictures of more than "
            f"{MOST / 1e6:.1f} megapixels or {sides.largest} pixels a side need a --size, such as "
            f"{near[0]}x{near[1]}"
        )
    if exact:
        wide, high = (max(-(-side // patch) * patch, sides.smallest) for side in picture.size)
        return wide, high
    return width // patch * patch, height // patch * patch


def expect_one(name: str, pictures: Sequence[Image.Image]) -> None:
    """Refuse pictures of several sizes in one request."""
    if len(found := {each.size for each in pictures}) > 1:
        some = " and ".join(f"{width}x{height}" for width, height in sorted(found)[:2])
        raise RequestError(
            f"the pictures given as {name} are of {len(found)} sizes, as {some}; "
            "give a size, or ask for each size alone"
        )


def tell_large(size: Size, manifest: Manifest, others: int = 0) -> None:
    """A line for what is far above what models were trained at, before anything is loaded.

    Args:
        size: that is painted.
        manifest: of the bundle.
        others: tokens of reference pictures.
    """
    if size[0] * size[1] > MANY:
        _log.warning("painting %s; a smaller --size takes less", said(size, manifest, others))


def said(size: Size, manifest: Manifest, others: int = 0) -> str:
    """What a picture takes, for a person: pixels, tokens, and the memory of one step's attention."""
    (width, height), patch = size, manifest.model.patch
    tokens = -(-width // patch) * -(-height // patch)
    window = manifest.text
    text = min(window.most, USUAL * window.multiple) if window else 0
    beside = f" and {text} of text" if window and window.multiple < window.most else ""
    scores = _heads(manifest) * (tokens + others + text) ** 2 * _bytes(manifest)
    return (
        f"{width}x{height} pixels ({width * height / 1e6:.1f} megapixels, {tokens:,} tokens{beside}: up to "
        f"{scores / 1e9:.1f} GB for one step's attention where the backend does not fuse it)"
    )


def stretch(before: Size, after: Size) -> float:
    """By how much a picture's shape changes: 0.041 where one side grows 4.1 % more than the other."""
    ratio = after[0] * before[1] / (after[1] * before[0])
    return max(ratio, 1 / ratio) - 1


def tell_stretched(what: str, before: Size, after: Size, advice: str, always: bool = False) -> None:
    """A line for a picture that loses its shape noticeably; `always`: also when it is a little."""
    found = stretch(before, after)
    if before != after and (always or found > NOTICED):
        _log.warning(
            "the %s of %dx%d pixels is resized to %dx%d, which stretches it by %.1f %%; %s",
            *(what, *before, *after, 100 * found, advice),
        )


def tell_given_back(painted: Size, size: Size) -> None:
    """A line for a picture that is given back at its own size and painted at another."""
    _log.warning(
        "painted at %dx%d and laid back into the picture of %dx%d pixels: --paste keeps its size",
        *painted,
        *size,
    )


def distinct(pictures: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """Each once, by identity."""
    yield from {id(each): each for each in pictures}.values()


def _shaped(size: Size, patch: int, pixels: int) -> Size:
    """The size of the same shape, nearly, with so many pixels."""
    factor = (pixels / (size[0] * size[1])) ** 0.5
    width, height = (max(round(side * factor / patch), 1) * patch for side in size)
    return width, height


def _heads(manifest: Manifest) -> int:
    """Attention heads, from the width of the text that the denoiser takes; 1 where that does not tell."""
    head = sum(manifest.model.positions.axes)
    denoiser = manifest.stages.get("denoiser")
    for each in denoiser.inputs if denoiser else ():
        wide = each.dims[-1] if each.dims else None
        if "text" in each.dims and isinstance(wide, int) and wide >= head:
            return wide // head
    return 1


def _bytes(manifest: Manifest) -> int:
    stage = manifest.stages.get("denoiser")
    return 4 if stage is None or (stage.base or stage.precision) == "fp32" else 2
