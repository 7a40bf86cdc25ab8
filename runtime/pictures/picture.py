"""Pictures that are given to paint from, on disk or open."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import profile
from flux_trt.runtime.pictures.strokes import strokes

Source: TypeAlias = str | os.PathLike[str] | IO[bytes] | Image.Image
"""Where a picture is read from: a file's name, an open binary file, or a picture that is open."""

MOST_PIXELS = 2 * 89_478_485
"""Of a picture that is read: what Pillow itself refuses from; decoded, that takes 0.7 GB."""

_SMALLER = f"scale it down to {MOST_PIXELS / 1e6:.0f} megapixels or less"


def is_named_as_one(path: str | Path) -> bool:
    """Whether a file has the ending of a format that Pillow knows."""
    return Path(path).suffix.lower() in Image.registered_extensions()


def read(given: Source, what: str = "") -> Image.Image:
    """A whole picture of any format that Pillow knows, or one that is open, as RGB.

    It is turned as its EXIF says; see `rgb` for what becomes of its values. Of a JPEG with further pictures
    inside, as phones write them, the first is taken; others of several frames or pages are refused, and
    so are pictures of more than `MOST_PIXELS`, both before anything is decoded. Pillow's warnings are
    silenced: what they warn of is refused, or does not show.

    Args:
        given: a file's name, an open binary file, or an open picture, which stays as it is.
        what: it is called in a message, where it has no name.

    Raises:
        RequestError: no file, a folder, no picture, or a truncated, animated, closed or huge one.
    """
    return _told(given, rgb, what)


def read_mask(given: Source, what: str = "") -> Image.Image:
    """A mask, as "L", by the rules of `read` and `grey`: white is painted anew, black is kept.

    Raises:
        RequestError: as `read`.
    """
    return _told(given, grey, what)


def rgb(image: Image.Image) -> Image.Image:
    """sRGB of any picture: what is transparent lies over white, 16-bit greys are rounded to 8 bits.

    An embedded colour profile is obeyed, see `profile`; without one, CMYK is taken as plain inks, RGB as
    sRGB. Of 16-bit RGB files Pillow reads the upper 8 bits.

    Raises:
        RequestError: values without a known white, such as floats.
    """
    image = profile.srgb(_eight_bits(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    found = image.convert("RGB")
    for obeyed in (profile.PROFILE, "exif", "transparency"):
        found.info.pop(obeyed, None)
    return found


def grey(image: Image.Image) -> Image.Image:
    """The mask in any picture, "L": its luminance, or its transparency (see `strokes`); no profile is obeyed.

    Raises:
        RequestError: as `rgb`.
    """
    return strokes(_eight_bits(image))


def as_pixels(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture at another size, uint8 [height, width, 3].

    Source: diffusers VaeImageProcessor.resize; Lanczos, only where the size differs.

    Args:
        image: of any kind that `rgb` takes.
        size: (width, height) in pixels.
    """
    return np.array(rgb(image).resize(size, Image.Resampling.LANCZOS))


def as_mask(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A mask at another size, float32 [height, width]: 1 where it is at least half white, else 0.

    Source: diffusers VaeImageProcessor.preprocess as FluxFillPipeline and FluxInpaintPipeline set it up:
    first resized with Lanczos, then grey, then binarised.

    Args:
        image: "L", RGB, or of any kind that `grey` takes.
        size: (width, height) in pixels.
    """
    mask = image if image.mode in ("L", "RGB") else grey(image)
    values = np.asarray(mask.resize(size, Image.Resampling.LANCZOS).convert("L"))
    return (values >= 128).astype(np.float32)


@contextmanager
def _opened(given: Source) -> Iterator[Image.Image]:
    """A picture, decoded and the right way up; what is refused raises RequestError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with nullcontext(given) if isinstance(given, Image.Image) else Image.open(given) as image:
            if image.width * image.height > MOST_PIXELS:
                raise RequestError(f"it has {image.width}x{image.height} pixels; {_SMALLER}")
            if not image.width * image.height:
                raise RequestError(f"it has {image.width}x{image.height} pixels; give one that has some")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise RequestError(f"it has {frames} frames; save the one you mean")
            image.load()
            yield ImageOps.exif_transpose(image)


def _told(given: Source, convert: Callable[[Image.Image], Image.Image], what: str) -> Image.Image:
    """The picture, or one line that says why not."""
    name = given if isinstance(given, (str, os.PathLike)) else what or "that is open"
    try:
        with _opened(given) as image:
            return convert(image)
    except FileNotFoundError:
        raise RequestError(f"no picture {name}; check the name") from None
    except IsADirectoryError:
        raise RequestError(f"{name} is a folder; name a picture in it") from None
    except RequestError as fault:
        why = str(fault)
    except UnidentifiedImageError:
        why = "it is nothing that Pillow knows; give a whole PNG or JPEG"
    except Image.DecompressionBombError:
        why = f"it has too many pixels; {_SMALLER}"
    except Exception as fault:  # Pillow's readers raise whatever a broken file makes them stumble over
        if isinstance(fault, OSError) and fault.strerror:
            why = f"{fault.strerror}; check its name and permissions"
        else:
            why = f"{' '.join(str(fault).split()) or type(fault).__name__}; give a whole PNG or JPEG"
    raise RequestError(f"cannot read the picture {name}: {why}")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey of integers up to 65535 (PNG, TIFF) as "L"; Pillow itself would clip it at 255."""
    if image.mode == "F":
        raise RequestError("the values are floats; save it with 8 or 16 bits a value")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise RequestError("the values are not those of 16 bits; save it with 8 or 16 bits a value")
    found = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    found.info.update({name: image.info[name] for name in (profile.PROFILE,) if name in image.info})
    return found
