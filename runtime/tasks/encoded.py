"""The pictures of a request, encoded: each different one once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime import picture
from flux_trt.runtime.request import Request
from flux_trt.runtime.seen import Seen
from flux_trt.runtime.tasks import fill


@dataclass(frozen=True)
class Sights:
    """The encoded pictures of a request; lists hold one per picture to paint."""

    images: list[Seen] = field(default_factory=list)
    controls: list[Seen] = field(default_factory=list)
    holed: list[Seen] = field(default_factory=list)
    """For Fill: the images without what is to be painted."""
    references: list[Seen] = field(default_factory=list)
    """The same for all pictures."""


def look(request: Request, see: Callable[[npt.NDArray[Any]], Seen]) -> Sights:
    """Encode all pictures of a request with `see`, which takes pixels [H, W, 3]."""
    size, seen = (request.width, request.height), dict[tuple[int, ...], Seen]()

    def once(image: Image.Image) -> Seen:
        if (id(image),) not in seen:
            seen[(id(image),)] = see(picture.as_pixels(image, size))
        return seen[(id(image),)]

    def once_holed(index: int) -> Seen:
        image, mask = request.images[index], request.masks[index]
        if (id(image), id(mask)) not in seen:
            pixels = picture.as_pixels(image, size).astype(np.float32)
            seen[id(image), id(mask)] = see(fill.holed(pixels, request.mask(index)))
        return seen[id(image), id(mask)]

    return Sights(
        images=[once(image) for image in request.images],
        controls=[once(image) for image in request.controls],
        holed=[once_holed(index) for index in range(len(request)) if request.task == "fill"],
        references=[see(np.asarray(each)) for each in request.references],
    )
