"""The texts in a picture's file: our own parameters as JSON, and a text that A1111-style tools read.

In a PNG they are tEXt chunks (iTXt where Latin-1 is not enough). In JPEG and WebP they are EXIF: our JSON is
the ImageDescription, the other text the UserComment, as stable-diffusion-webui writes it (modules/images.py,
`save_image_with_geninfo`: "UNICODE" and UTF-16, big endian). An open picture has both in `info`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from flux_trt.runtime.errors import RequestError

OURS = "flux_trt"
"""The key in `Image.info`, and the PNG keyword, of our parameters as JSON."""
SHARED = "parameters"
"""The same of the text for other tools. Until version 0.1.0 our JSON stood here."""

_DESCRIPTION, _COMMENT, _EXIF = 0x010E, 0x9286, 0x8769
_UNICODE = b"UNICODE\0"
EXIF_MOST = 65_533 - 6 - 200
"""Bytes of the two texts in a JPEG: a segment's length without its marker and EXIF's own tables."""


def of(image: Image.Image) -> dict[str, str]:
    """The texts of an open picture, of those that it has."""
    return {key: image.info[key] for key in (OURS, SHARED) if isinstance(image.info.get(key), str)}


def png(texts: dict[str, str]) -> PngImagePlugin.PngInfo:
    """For `Image.save(..., pnginfo=)`."""
    found = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        found.add_text(key, text)
    return found


def exif(texts: dict[str, str]) -> Image.Exif:
    """For `Image.save(..., exif=)`."""
    found = Image.Exif()
    if OURS in texts:
        found[_DESCRIPTION] = texts[OURS]
    if SHARED in texts:
        found[_EXIF] = {_COMMENT: _UNICODE + texts[SHARED].encode("utf-16-be")}
    return found


def exif_bytes(texts: dict[str, str]) -> int:
    """What they take in EXIF."""
    return len(texts.get(OURS, "")) + 2 * len(texts.get(SHARED, ""))


def recorded(path: str | Path) -> dict[str, Any]:
    """Our parameters, from a file that this or an earlier version has written.

    Raises:
        RequestError: no file, no picture, or one without them.
    """
    try:
        with Image.open(path) as image:
            candidates = [image.info.get(OURS), image.info.get(SHARED), image.getexif().get(_DESCRIPTION)]
    except FileNotFoundError:
        raise RequestError(f"no picture {path}; check the name") from None
    except Exception as fault:  # Pillow's readers raise whatever a broken file makes them stumble over
        why = " ".join(str(fault).split()) or type(fault).__name__
        raise RequestError(f"cannot read the picture {path} ({why}); give a whole one") from None
    for text in candidates:
        if found := _parsed(text):
            return found
    raise RequestError(
        f"{path} does not say how it was painted; only pictures that flux_trt has written do, as long as no "
        "other program has saved them again"
    )


def _parsed(text: Any) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "flux_trt" in found else None
