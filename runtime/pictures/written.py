"""Pictures into files: PNG, JPEG or WebP by the name, with the texts that say how they were painted."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

from PIL import Image

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import part, texts

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
QUALITY = 95
"""Of JPEG and WebP, 1 to 100. JPEG keeps colours at full resolution; Pillow's own default is 75."""

_log = logging.getLogger(__name__)


def write(image: Image.Image, path: str | Path, quality: int | None = None) -> None:
    """Write a picture with the texts that its `info` has; `path` never holds half a picture.

    Args:
        image: RGB; `image.info["flux_trt"]` and `["parameters"]` go into the file (see `texts`).
        path: where to, ending in one of `FORMATS`; a file that is there is replaced.
        quality: of JPEG and WebP, 1 to 100. None: `QUALITY`.

    Raises:
        RequestError: another ending, a quality for a PNG, or a place that cannot be written.
    """
    path = Path(path)
    kind = form(path, quality)
    try:
        part.write(path, encoded(image, kind, quality, str(path)))
    except OSError as fault:
        raise RequestError(f"cannot write {path}: {fault.strerror or fault}; choose another place") from None


def encoded(image: Image.Image, kind: str, quality: int | None = None, what: str = "the picture") -> bytes:
    """The file that `write` writes.

    Args:
        image: as `write`'s.
        kind: Pillow's name of the format, one of those of `FORMATS`.
        quality: as `write`'s; a PNG has none.
        what: it is called in a warning.

    Raises:
        OSError: a picture that the format cannot hold.
    """
    carried = texts.of(image)
    if kind == "JPEG" and texts.exif_bytes(carried) > texts.EXIF_MOST:
        carried = _fitting(carried, what)
    options: dict[str, Any] = {"quality": QUALITY if quality is None else quality}
    if kind == "PNG":
        options = {"pnginfo": texts.png(carried)}
    elif carried:
        options["exif"] = texts.exif(carried)
    if kind == "JPEG":
        options["subsampling"] = 0
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def form(path: Path, quality: int | None = None) -> str:
    """Pillow's name of the format that a file's name stands for.

    Raises:
        RequestError: another ending, or a quality that the format has not.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path} is not a .png, .jpg, .jpeg or .webp name; give it one of these endings")
    if quality is not None and kind == "PNG":
        raise RequestError(
            f"{path} is a PNG, which loses nothing; leave the quality out, or name a .jpg or .webp"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise RequestError(f"quality {quality} is not possible; it is 1 to 100")
    return kind


def _fitting(carried: dict[str, str], what: str) -> dict[str, str]:
    """Our own text alone where both are more than a JPEG can hold; none where even that is."""
    ours = {key: text for key, text in carried.items() if key == texts.OURS}
    if texts.exif_bytes(ours) <= texts.EXIF_MOST:
        _log.warning(
            "%s: the parameters are too long for a JPEG in two forms; other tools cannot read them", what
        )
        return ours
    _log.warning("%s: the parameters are too long for a JPEG and are not in it; name a .png", what)
    return {}
