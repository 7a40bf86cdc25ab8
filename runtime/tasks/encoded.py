"""The pictures of a request, encoded: each different one once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flux_trt.runtime.pictures import picture
from flux_trt.runtime.pictures.encoded import EncodedPicture
from flux_trt.runtime.tasks import fill
from flux_trt.runtime.tasks.request import Request


@dataclass(frozen=True)
class EncodedPictures:
    """The encoded pictures of a request; lists hold one per picture to paint."""

    images: list[EncodedPicture] = field(default_factory=list)
    controls: list[EncodedPicture] = field(default_factory=list)
    holed: list[EncodedPicture] = field(default_factory=list)
    """For a model that fills holes: the images without what is to be painted."""
    references: list[EncodedPicture] = field(default_factory=list)
    """The same for all pictures."""


def encode_pictures(
    request: Request, encode: Callable[[npt.NDArray[Any]], EncodedPicture]
) -> EncodedPictures:
    """Encode all pictures of a request with `encode`, which takes pixels [H, W, 3]."""
    size, done = (request.width, request.height), dict[tuple[int, ...], EncodedPicture]()

    def once(image: Image.Image) -> EncodedPicture:
        if (id(image),) not in done:
            done[(id(image),)] = encode(picture.as_pixels(image, size))
        return done[(id(image),)]

    def once_holed(index: int) -> EncodedPicture:
        image, mask = request.images[index], request.masks[index]
        if (id(image), id(mask)) not in done:
            pixels = picture.as_pixels(image, size).astype(np.float32)
            done[id(image), id(mask)] = encode(fill.holed(pixels, request.mask(index)))
        return done[id(image), id(mask)]

    return EncodedPictures(
        images=[once(image) for image in request.images],
        controls=[once(image) for image in request.controls],
        holed=[once_holed(index) for index in range(len(request)) if request.task == "fill"],
        references=[encode(np.asarray(each)) for each in request.references],
    )
