"""Pictures on disk: PNG files that know how they were painted."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, PngImagePlugin

from flux_trt.runtime.errors import RequestError

PARAMETERS = "parameters"
"""The PNG tEXt keyword, and the key in `Image.info`, of the JSON text with a picture's parameters."""


def write(image: Image.Image, path: str | Path) -> None:
    """Write a PNG with the image's parameters in it; `path` never holds half a picture.

    Args:
        image: `image.info["parameters"]`, where it has some, goes into the file.
        path: where to; a file that is there is replaced.

    Raises:
        RequestError: a place that cannot be written.
    """
    path = Path(path)
    metadata = PngImagePlugin.PngInfo()
    if PARAMETERS in image.info:
        metadata.add_text(PARAMETERS, image.info[PARAMETERS])
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with aside.open("wb") as file:
                image.save(file, "PNG", pnginfo=metadata)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as fault:
        raise RequestError(f"cannot write {path}: {fault.strerror or fault}; choose another place") from None


def read(path: str | Path) -> Image.Image:
    """Read a whole picture of any format that Pillow knows, as RGB.

    Raises:
        RequestError: no file, no picture, or a truncated one.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise RequestError(f"no picture {path}; check the name") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise RequestError(f"cannot read the picture {path}: {fault}; give a whole PNG or JPEG") from None
