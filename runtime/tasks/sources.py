"""Which pictures were given: where each lay, and what was in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Source:
    """A picture that a request was given."""

    sha256: str
    """Of its pixels as they were read, before any resize; see `digest`."""
    path: str | None = None
    """As it was given; None for one that never was a file."""

    @property
    def record(self) -> dict[str, str]:
        """For a picture's parameters."""
        return {"sha256": self.sha256} | ({} if self.path is None else {"path": self.path})


def digest(image: Image.Image) -> str:
    """SHA-256 of a picture's mode and size, as in "RGB 64x32", a zero byte, and its pixels row by row.

    Of pixels, not of the file: a picture that is open has no file, and one saved again without loss is the
    same.
    """
    found = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\0".encode())
    found.update(image.tobytes())
    return found.hexdigest()


def sources_of(given: Any, opened: Sequence[Image.Image]) -> tuple[Source, ...]:
    """Of what was given as one argument, and of that as it was opened: one for each that is open.

    Args:
        given: a picture, a path, or several of them.
        opened: as they were read; a single one may be there several times, once for each prompt.
    """
    several = list(given) if isinstance(given, (list, tuple)) else [given] * len(opened)
    if len(several) != len(opened):
        several = several * len(opened) if len(several) == 1 else [None] * len(opened)
    known: dict[int, str] = {}
    for image in opened:
        known[id(image)] = known.get(id(image)) or digest(image)
    return tuple(Source(known[id(image)], _path(one)) for one, image in zip(several, opened, strict=True))


def _path(given: Any) -> str | None:
    if isinstance(given, Image.Image):
        given = getattr(given, "filename", None) or None
    return fspath(given) if isinstance(given, (str, PathLike)) else None
