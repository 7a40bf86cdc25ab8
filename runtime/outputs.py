"""Where pictures are written: places that are looked at before any work, so that no picture is lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flux_trt.runtime import painted
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture, texts, written


@dataclass(frozen=True)
class Writing:
    """How a command writes its pictures."""

    force: bool = False
    """Replace whatever is there."""
    quality: int | None = None
    """Of JPEG and WebP; see `written.write`."""

    def write(self, image: Image.Image, path: Path) -> None:
        """Write one. Errors are `written.write`'s."""
        written.write(image, path, self.quality)

    def expect_writable(self, output: Path) -> None:
        """Refuse a place where no picture can be written.

        Raises:
            RequestError: naming it.
        """
        written.form(output, self.quality)
        if output.is_dir():
            raise RequestError(f"{output} is a folder; give a file name in it")
        if not output.parent.is_dir():
            raise RequestError(f"the folder {output.parent} does not exist; create it first")
        if not os.access(output.parent, os.W_OK):
            raise RequestError(f"the folder {output.parent} cannot be written; choose another")

    def expect_free(self, places: Sequence[Path], asked: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to replace anything but the same picture, unless that was asked for.

        Args:
            places: one for each picture.
            asked: the parameters of each, from `painted.parameters`.

        Raises:
            RequestError: naming the first, and what differs.
        """
        for place, parameters in zip(places, asked, strict=True):
            if not self.force and os.path.lexists(place) and (why := differs(place, parameters)):
                raise RequestError(
                    f"{place} is there and is another file ({why}); "
                    "give another name, or --force to replace it"
                )


def several(output: Path, pictures: int) -> list[Path]:
    """OUT.png for one picture, OUT-0.png, OUT-1.png ... for several."""
    if pictures == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(pictures)]


def differs(place: Path, asked: Mapping[str, Any]) -> str:
    """What is wrong with the file at `place` as the picture that is asked for; "" for nothing.

    It must be whole, and say itself that it was painted with the same parameters.
    """
    try:
        recorded = texts.recorded(place)
        picture.read(place)
    except RequestError as fault:
        return _reason(str(fault))
    if names := painted.same(recorded, asked):
        return f"it differs in {', '.join(names)}"
    return ""


def _reason(fault: str) -> str:
    """A refusal's first half."""
    return fault.partition(";")[0]
