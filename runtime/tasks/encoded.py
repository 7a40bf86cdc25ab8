"""The pictures of a request, encoded: each different one once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

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
    done = dict[tuple[object, ...], EncodedPicture]()

    def once(image: Image.Image, index: int) -> EncodedPicture:
        key = id(image), request.place(index)
        if key not in done:
            done[key] = encode(request.pixels(image, index))
        return done[key]

    def once_holed(index: int) -> EncodedPicture:
        image, mask = request.images[index], request.masks[index]
        key = id(image), id(mask), request.place(index)
        if key not in done:
            pixels = request.pixels(image, index).astype(np.float32)
            done[key] = encode(fill.holed(pixels, request.mask(index)))
        return done[key]

    def control(image: Image.Image) -> EncodedPicture:
        if (id(image),) not in done:
            done[(id(image),)] = encode(np.asarray(image))
        return done[(id(image),)]

    return EncodedPictures(
        images=[once(image, index) for index, image in enumerate(request.images)],
        controls=[control(image) for image in request.controls],
        holed=[once_holed(index) for index in range(len(request)) if request.task == "fill"],
        references=[encode(np.asarray(each)) for each in request.references],
    )
