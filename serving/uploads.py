"""Pictures that clients send: sniffed, measured, and only then decoded.

No address is fetched and no path is read.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any

from PIL import Image

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.serving.errors import ApiError
from flux_trt.serving.limits import MEGA, Limits

FORMATS = ("PNG", "JPEG", "WEBP", "MPO")


def of_text(name: str, text: Any) -> bytes:
    """The bytes of a `data:` address.

    Raises:
        ApiError: anything else, an address on a network above all.
    """
    if not isinstance(text, str):
        raise ApiError(400, f"{name} is no picture; send a file, or a data: address", param=name)
    head, comma, body = text.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise ApiError(
            400,
            f"{name} is text, and no data:image/...;base64 address; nothing is fetched: send the file",
            param=name,
            code="unsupported_image",
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{name} is not valid base64; encode it again", param=name) from None


def opened(name: str, data: bytes, limits: Limits) -> Image.Image:
    """A picture, decoded as it is.

    Args:
        name: of the parameter.
        data: the file's bytes.
        limits: of bytes and pixels; both are looked at before anything is decoded.

    Raises:
        ApiError: 413 for what is too large, 400 for what is no PNG, JPEG or WebP.
    """
    if len(data) > limits.file_bytes:
        raise ApiError(
            413,
            f"{name} has {len(data) / MEGA:.0f} MB and {limits.file_bytes / MEGA:.0f} are accepted; "
            "send a smaller one",
            param=name,
            code="image_too_large",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise ApiError(
            400, f"{name} is no whole PNG, JPEG or WebP; send one", param=name, code="unsupported_image"
        ) from None
    if image.width * image.height > limits.given_megapixels * MEGA:
        raise ApiError(
            413,
            f"{name} has {image.width}x{image.height} pixels and {limits.given_megapixels:g} megapixels are "
            "accepted; send a smaller one",
            param=name,
            code="image_too_large",
        )
    return image


def photo(name: str, data: bytes, limits: Limits) -> Image.Image:
    """A picture to paint from, RGB. Errors are `opened`'s."""
    return _told(name, lambda: picture.read(opened(name, data, limits), name))


def mask(data: bytes, limits: Limits, size: tuple[int, int]) -> Image.Image:
    """A mask, "L": white is painted.

    One with transparency is OpenAI's: what is transparent is painted. One without is painted where it is
    white, as other servers and this toolkit have it.

    Args:
        data: the file's bytes.
        limits: see `opened`.
        size: of the picture that it lies on.

    Raises:
        ApiError: `opened`'s, or a mask of another size.
    """
    image = opened("mask", data, limits)
    if image.size != size:
        raise ApiError(
            400,
            f"the mask has {image.width}x{image.height} pixels and the picture {size[0]}x{size[1]}; "
            "make it of the picture's size",
            param="mask",
            code="invalid_value",
        )

    def read() -> Image.Image:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.histogram()[255] < image.width * image.height:
            return alpha.point(lambda value: 255 - value)
        return picture.read_mask(image, "mask")

    return _told("mask", read)


def _told(name: str, read: Any) -> Any:
    try:
        return read()
    except ApiError:
        raise
    except RequestError as fault:
        raise ApiError(400, str(fault), param=name, code="unsupported_image") from None
    except Exception:
        raise ApiError(
            400, f"{name} is no whole PNG, JPEG or WebP; send one", param=name, code="unsupported_image"
        ) from None
