"""The sizes at which a model looks at reference pictures.

Sources: diffusers FluxKontextPipeline and Flux2Pipeline `__call__`, Flux2ImageProcessor, Flux3ImageProcessor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.bundle.rules import Canvas, Preferred, References, Shrunk
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import latents, picture
from flux_trt.runtime.tasks import canvas, sizes

Size = tuple[int, int]
"""Width and height in pixels."""


def expect_number(manifest: Manifest, given: int) -> None:
    """Refuse more reference pictures than the model takes.

    Raises:
        RequestError: that.
    """
    most = manifest.model.references.most if manifest.model.references else None
    if most is not None and given > most:
        raise RequestError(f"{given} reference pictures are given, and {most} is the most; leave some out")


def crop_back(manifest: Manifest, given: Sequence[Image.Image], auto_resize: bool) -> canvas.Box | None:
    """What is cut out of a picture that is painted at the size of what `prepared` made of the given ones."""
    rule = _rule(manifest).size
    if not (isinstance(rule, Canvas) and len(given) == 1 and auto_resize):
        return None
    return canvas.place(rule, given[0].size, manifest.model.patch).box


def prepared(manifest: Manifest, given: Image.Image, auto_resize: bool, several: bool = False) -> Image.Image:
    """A reference picture as it is encoded, RGB.

    Args:
        manifest: of a bundle that takes them.
        given: RGB.
        auto_resize: as the bundle's rule says; False: the picture keeps its own size in whole patches.
        several: whether it is not the only one.

    Raises:
        RequestError: a picture that is too small, too large or too long.
    """
    rule, patch = _rule(manifest), manifest.model.patch
    if isinstance(rule.size, Shrunk):
        _expect_shape(rule.size, given.size)
        found = _cropped(_shrunk(rule.size.area, given) if auto_resize else given, patch)
    elif isinstance(rule.size, Canvas):
        if auto_resize and not several:
            found = canvas.filled(rule.size, given, patch)
        else:
            found = _cropped(_shrunk(rule.size.several, given) if auto_resize else given, patch)
    else:
        size = (
            _preferred(manifest, rule.size, given.size) if auto_resize else whole_patches(given.size, patch)
        )
        sizes.tell_stretched(
            "reference picture",
            given.size,
            size,
            "--no-auto-resize keeps its shape" if auto_resize else "crop it to sides in whole patches",
        )
        found = Image.fromarray(picture.as_pixels(given, size))
    if found.width * found.height > sizes.MOST:
        raise RequestError(
            f"the reference picture has {sizes.said(found.size, manifest)}; scale it down to "
            f"{sizes.MOST / 1e6:.1f} megapixels or less"
            + ("" if auto_resize else ", or leave --no-auto-resize out")
        )
    latents.grid(*found.size, patch, manifest.sizes)
    return found


def painted_size(manifest: Manifest, reference: Image.Image) -> Size:
    """The size that is painted where none is asked for: that of the first picture, as `prepared` gave it."""
    rule = _rule(manifest)
    if not isinstance(rule.size, Preferred):
        return reference.size
    return _preferred(manifest, rule.size, reference.size)


def preferred_size(rule: Preferred, size: Size, patch: int, area: int) -> Size:
    """The preferred size of the nearest aspect ratio; of two that are as near, the narrower one.

    Args:
        rule: of the bundle.
        size: of the picture.
        patch: pixels of a token's side; sizes are multiples of it.
        area: pixels of the bundle's default picture. The preferred sizes are scaled to it, because a model of
            other pictures than they were made for has no use for theirs: both sides by the same factor, then
            to the nearest multiple of `patch`.

    Raises:
        RequestError: a picture with a side below `patch`.
    """
    width, height = whole_patches(
        size, patch
    )  # as in diffusers, the aspect ratio is that of the sides cut down
    _, *chosen = min((abs(width / height - w / h), w, h) for w, h in rule.sizes)
    factor = math.sqrt(area / rule.area)
    w, h = (max(round(side * factor / patch), 1) * patch for side in chosen)
    return w, h


def whole_patches(size: Size, patch: int) -> Size:
    """A size with each side cut down to a multiple of `patch`.

    Raises:
        RequestError: a picture with a side below `patch`.
    """
    width, height = size
    if min(size) < patch:
        raise RequestError(
            f"the reference picture has {width}x{height} pixels and each side needs at least {patch}; "
            "give a larger one"
        )
    return width // patch * patch, height // patch * patch


def _rule(manifest: Manifest) -> References:
    if manifest.model.references is None:
        raise RequestError(f"a {manifest.variant} bundle follows no reference pictures; leave them out")
    return manifest.model.references


def _preferred(manifest: Manifest, rule: Preferred, size: Size) -> Size:
    defaults = manifest.defaults
    return preferred_size(rule, size, manifest.model.patch, defaults.width * defaults.height)


def _expect_shape(rule: Shrunk, size: Size) -> None:
    width, height = size
    if min(size) < rule.least or max(size) > rule.aspect * min(size):
        raise RequestError(
            f"the reference picture has {width}x{height} pixels; sides are at least {rule.least}, and the "
            f"long one at most {rule.aspect} times the short one: crop or enlarge it"
        )


def _shrunk(area: int, given: Image.Image) -> Image.Image:
    width, height = given.size
    if width * height <= area:
        return given
    factor = math.sqrt(area / (width * height))
    return given.resize((int(width * factor), int(height * factor)), Image.Resampling.LANCZOS)


def _cropped(given: Image.Image, patch: int) -> Image.Image:
    """The centre, in whole patches."""
    width, height = whole_patches(given.size, patch)
    left, top = (given.width - width) // 2, (given.height - height) // 2
    return given.crop((left, top, left + width, top + height))
