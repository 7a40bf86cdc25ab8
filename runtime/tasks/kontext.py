"""The sizes at which FLUX.1 Kontext looks at reference pictures.

Source: diffusers FluxKontextPipeline, PREFERRED_KONTEXT_RESOLUTIONS and `__call__`.
"""

from __future__ import annotations

import math

from flux_trt.runtime.errors import RequestError

Size = tuple[int, int]
"""Width and height in pixels."""

AREA = 1024 * 1024
"""Pixels of Kontext's own pictures; every preferred size has about as many."""

PREFERRED: list[Size] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
]
"""What Kontext was trained on, from tall to wide."""


def preferred_size(width: int, height: int) -> Size:
    """The preferred size whose aspect ratio is nearest; of two that are as near, the narrower one."""
    _, *size = min((abs(width / height - w / h), w, h) for w, h in PREFERRED)
    return size[0], size[1]


def reference_size(width: int, height: int, patch: int, auto_resize: bool, area: int | None = None) -> Size:
    """The size that a reference picture is resized to before it is encoded.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        patch: pixels of a token's side; sizes are multiples of it.
        auto_resize: take the preferred size of the nearest aspect ratio; False: keep the picture's own size,
            with each side cut down to a multiple of `patch`.
        area: pixels of the bundle's default picture. The preferred sizes are scaled to it, because a model
            of other pictures than Kontext's has no use for theirs: both sides by the same factor, then to
            the nearest multiple of `patch`. None, and 1024 x 1024, leave them as they are.

    Raises:
        RequestError: a picture with a side below `patch`.
    """
    if min(width, height) < patch:
        raise RequestError(
            f"the reference picture has {width}x{height} pixels and each side needs at least {patch}; "
            "give a larger one"
        )
    # As in diffusers, the aspect ratio is that of the sides already cut down.
    width, height = width // patch * patch, height // patch * patch
    if not auto_resize:
        return width, height
    factor = math.sqrt((area or AREA) / AREA)
    preferred = preferred_size(width, height)
    return _multiple(preferred[0] * factor, patch), _multiple(preferred[1] * factor, patch)


def _multiple(side: float, patch: int) -> int:
    """The nearest multiple of `patch`, and at least one."""
    return max(round(side / patch), 1) * patch
