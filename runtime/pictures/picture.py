"""Pictures that are given to paint from, on disk or open."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from flux_trt.runtime.errors import RequestError

MOST_PIXELS = 2 * 89_478_485
"""Of a picture that is read: what Pillow itself refuses from; decoded, that takes 0.7 GB."""

_SMALLER = f"scale it down to {MOST_PIXELS / 1e6:.0f} megapixels or less"


def read(path: str | Path) -> Image.Image:
    """Read a whole picture of any format that Pillow knows, as RGB.

    It is turned as its EXIF says; see `rgb` for what becomes of its values. Of a JPEG with further pictures
    inside, as phones write them, the first is taken; other files of several frames or pages are refused, and
    so are pictures of more than `MOST_PIXELS`, both before anything is decoded. Pillow's warnings are
    silenced: what they warn of is refused, or does not show.

    Raises:
        RequestError: no file, a folder, no picture, or a truncated, animated or huge one.
    """
    return _told(path, rgb)


def read_mask(path: str | Path) -> Image.Image:
    """Read a mask, as "L", by the rules of `read` and `grey`: white is painted anew, black is kept.

    Raises:
        RequestError: as `read`.
    """
    return _told(path, grey)


def rgb(image: Image.Image) -> Image.Image:
    """RGB of any picture: what is transparent lies over white, 16-bit greys are rounded to 8 bits.

    Colour profiles are not looked at: CMYK is taken as plain inks, RGB as sRGB. Of 16-bit RGB files Pillow
    reads the upper 8 bits.

    Raises:
        RequestError: values without a known white, such as floats.
    """
    return _over(image, "white").convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """Luminance of any picture, "L": what is transparent lies over black, so that it is no part of a mask.

    Raises:
        RequestError: as `rgb`.
    """
    return _over(image, "black").convert("L")


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
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture's file, decoded and the right way up; what is refused raises RequestError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise RequestError(f"it has {image.width}x{image.height} pixels; {_SMALLER}")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise RequestError(f"it has {frames} frames; save the one you mean")
            image.load()
            yield ImageOps.exif_transpose(image)


def _told(path: str | Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture, or one line that says why not."""
    try:
        with _opened(path) as image:
            return convert(image)
    except FileNotFoundError:
        raise RequestError(f"no picture {path}; check the name") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder; name a picture in it") from None
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
    raise RequestError(f"cannot read the picture {path}: {why}")


def _over(image: Image.Image, background: str) -> Image.Image:
    """Eight bits a value and nothing transparent."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise RequestError("the values are floats; save it with 8 or 16 bits a value")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey of integers up to 65535 (PNG, TIFF) as "L"; Pillow itself would clip it at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise RequestError("the values are not those of 16 bits; save it with 8 or 16 bits a value")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
