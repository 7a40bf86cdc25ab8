"""The pictures that are given, opened: whatever Python has as a picture, or one line that names its type."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks.numbers import kind

MANY = (list, tuple, set, frozenset)


def pictures(name: str, given: Any, prompts: int | None = None) -> tuple[Image.Image, ...]:
    """What was given as one argument, open: masks "L", all else RGB.

    Args:
        name: of the argument; a "mask" is read as one.
        given: None, a picture, or several. A picture is a file's name, an open binary file, an open
            `PIL.Image`, or a NumPy array of bytes [H, W, 3], [H, W, 4], [H, W, 1] or [H, W].
        prompts: there must be one for each, or one for all; None: any number.

    Raises:
        RequestError: anything else, or a picture that cannot be read.
    """
    if given is None:
        return ()
    found = tuple(_picture(name, each) for each in several(given))
    if prompts is None or len(found) == prompts:
        return found
    if len(found) == 1:
        return found * prompts
    raise RequestError(
        f"{len(found)} pictures are given as {name} for {prompts} prompts; give one each, or one for all"
    )


def several(given: Any) -> list[Any]:
    """The pictures of what may be one."""
    if isinstance(given, MANY) or (
        isinstance(given, Iterable)
        and not isinstance(given, (str, bytes, os.PathLike, np.ndarray, Image.Image, dict))
        and not hasattr(given, "read")
        and not hasattr(given, "shape")
    ):
        return list(given)
    return [given]


def _picture(name: str, given: Any) -> Image.Image:
    what = f"given as {name}"
    read = picture.read_mask if name == "mask" else picture.read
    if isinstance(given, np.ndarray):
        return read(_of_array(name, given), what)
    if isinstance(given, (str, os.PathLike, Image.Image)) or hasattr(given, "read"):
        return read(given, what)
    advice = "give a file's name, a PIL.Image, or a NumPy array of uint8 [H, W, 3]"
    if kind(given).endswith("torch.Tensor"):
        advice = "give it as 0..255 in a NumPy array of uint8 [H, W, 3], or as a PIL.Image"
    raise RequestError(f"{name} is {kind(given)}; {advice}")


def _of_array(name: str, given: np.ndarray[Any, Any]) -> Image.Image:
    shape = given.shape
    if given.dtype == bool and name == "mask":
        given = given.astype(np.uint8) * 255
    grey = given.ndim == 2 or (given.ndim == 3 and shape[2] == 1)
    if given.dtype != np.uint8 or not (grey or (given.ndim == 3 and shape[2] in (3, 4))):
        raise RequestError(
            f"{name} is an array of {given.dtype} {list(shape)}; "
            "give bytes (uint8, 0..255) as [H, W, 3], [H, W, 4], [H, W, 1] or [H, W]"
        )
    return Image.fromarray(np.ascontiguousarray(given[..., 0] if grey and given.ndim == 3 else given))
