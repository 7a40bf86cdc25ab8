"""Colour profiles that pictures carry: their values become sRGB's, which is what the models have seen."""

from __future__ import annotations

import io
import logging

import numpy as np
from PIL import Image

PROFILE = "icc_profile"
"""The key in `Image.info`."""
SAME = 1
"""Levels of 255 by which a profile may differ from sRGB and still be taken as sRGB: its rounding."""
MODES = ("L", "RGB", "CMYK", "LAB")

_log = logging.getLogger(__name__)


def srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB by its embedded profile: RGB, or RGBA where something is transparent.

    Without a profile, or with one that is sRGB's, it is returned as it is. A profile that cannot be used is
    ignored with a warning, as browsers do. LittleCMS converts, with perceptual intent.

    Args:
        image: eight bits a value.
    """
    profile = image.info.get(PROFILE)
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    base = _base(image)
    try:
        from PIL import ImageCms

        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), base.mode, "RGB")
        if base.mode == "RGB" and _is_same(transform):
            return image
        found = ImageCms.applyTransform(base, transform)
    except (
        Exception
    ) as fault:  # ImageCms raises PyCMSError, OSError or ValueError, whatever LittleCMS stumbles over
        why = " ".join(str(fault).split())
        _log.warning(
            "the picture's colour profile is ignored (%s); its colours may be off: save it as sRGB", why
        )
        return image
    if found is None:  # of an in-place transform only
        return image
    if alpha is not None:
        found.putalpha(alpha)
    found.info.pop(PROFILE, None)
    return found


def _base(image: Image.Image) -> Image.Image:
    """The colours alone, in a mode that LittleCMS takes."""
    if image.mode in MODES:
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _is_same(transform: object) -> bool:
    """Whether a transform from RGB leaves colours alone, but for rounding."""
    from PIL import ImageCms

    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(18, -1, 3)
    after = ImageCms.applyTransform(Image.fromarray(colours), transform)  # type: ignore[arg-type]
    return bool(np.abs(np.asarray(after).astype(int) - colours).max() <= SAME)
