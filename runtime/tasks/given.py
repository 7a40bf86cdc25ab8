"""The pictures of a request: opened, and what each becomes at the size that is painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks import edges, fill, masks, numbers, sizes
from flux_trt.runtime.tasks import references as reference_pictures
from flux_trt.runtime.tasks.fill import Margins
from flux_trt.runtime.tasks.opened import pictures
from flux_trt.runtime.tasks.place import Padded, Place, Region, Size, Whole
from flux_trt.runtime.tasks.sources import Source, sources_of


@dataclass(frozen=True, kw_only=True)
class Given:
    """Pictures that are open: one image, mask and control for each prompt, or none, and any references."""

    images: tuple[Image.Image, ...] = ()
    """With the margins that are outpainted."""
    masks: tuple[Image.Image, ...] = ()
    """Blurred."""
    controls: tuple[Image.Image, ...] = ()
    """Ready, or with `canny` the pictures whose edges are taken."""
    references: tuple[Image.Image, ...] = ()
    sources: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    margins: Margins | None = None
    canny: bool = False
    mask_blur: float = 0.0
    mask_crop: int | None = None

    @classmethod
    def of(
        cls,
        prompts: int,
        image: Any,
        mask: Any = None,
        control: Any = None,
        reference: Any = None,
        outpaint: Any = None,
        canny: Any = None,
        mask_blur: Any = None,
        mask_crop: Any = None,
    ) -> Given:
        """Open what was given; the arguments are those of `Pipeline.generate`.

        Raises:
            RequestError: what is no picture, or pictures that do not go together.
        """
        margins = None if outpaint is None else _margins(outpaint)
        blur = 0.0 if mask_blur is None else numbers.number("mask_blur", mask_blur)
        crop = None if mask_crop is None else numbers.integer("mask_crop", mask_crop)
        if min(blur, crop or 0) < 0:
            raise RequestError("mask_blur and mask_crop are pixels; give 0 or more")
        if margins and image is None:
            raise RequestError("--outpaint extends a picture; give the picture with --image")
        if margins and mask is not None:
            raise RequestError("--outpaint and --mask both say what to paint; give one of them")
        if margins and crop is not None:
            raise RequestError("--outpaint paints around a picture and --mask-crop inside; give one of them")
        if canny is not None and control is not None:
            raise RequestError("--canny makes the control picture that --control gives; give one of them")
        images, opened = pictures("image", image, prompts), pictures("mask", mask, prompts)
        name = "control" if canny is None else "canny"
        controls = pictures(name, control if canny is None else canny, prompts)
        references = pictures("reference", reference if numbers.truly(reference) else None)
        sources = {
            "image": sources_of(image, images),
            "mask": sources_of(mask, opened),
            "control": sources_of(control if canny is None else canny, controls),
            "reference": sources_of(reference, references),
        }
        for index, one in enumerate(sizes.distinct(opened)):
            masks.expect_white(one, "the mask" if len(set(map(id, opened))) == 1 else f"mask {index + 1}")
        if margins:
            extended = {id(each): fill.outpaint(each, margins) for each in sizes.distinct(images)}
            images, opened = (tuple(extended[id(each)][part] for each in images) for part in (0, 1))
        blurred = {id(each): masks.blurred(each, blur) for each in sizes.distinct(opened)}
        return cls(
            images=images,
            masks=tuple(blurred[id(each)] for each in opened),
            controls=controls,
            references=references,
            sources=sources,
            margins=margins,
            canny=canny is not None,
            mask_blur=blur,
            mask_crop=crop,
        )

    def expect_complete(self, paste: bool, strength: float | None) -> None:
        """Refuse what is said of pictures that are not given.

        Raises:
            RequestError: that.
        """
        if self.masks and not self.images:
            raise RequestError("a mask is given without a picture; give the picture with --image")
        if paste and not self.masks:
            raise RequestError("--paste puts back what a mask leaves alone; give the mask with --mask")
        if (self.mask_blur or self.mask_crop is not None) and not self.masks:
            raise RequestError("--mask-blur and --mask-crop are of a mask; give the mask with --mask")
        if strength is not None and not self.images:
            raise RequestError("a strength is given without a picture; give the picture with --image")

    def painted(
        self, manifest: Manifest, asked: Size | None, paste: bool, references: Sequence[Image.Image]
    ) -> Size:
        """The size that is painted: what is asked for, that of the pictures, or the bundle's.

        Raises:
            RequestError: pictures of several sizes, or of one that cannot be painted.
        """
        if asked is not None:
            return asked
        if self.images or self.controls:
            name, given = ("image", self.images) if self.images else ("control", self.controls)
            sizes.expect_one(name, given)
            exact = self.mask_crop is None and (paste or self.margins is not None)
            return sizes.own(manifest, given[0], bool(self.images) and exact)
        if references:
            return reference_pictures.painted_size(manifest, references[0])
        return manifest.defaults.width, manifest.defaults.height

    def places(self, asked: Size | None, painted: Size, paste: bool) -> tuple[Place, ...]:
        """How each picture lies on what is painted."""
        if self.mask_crop is not None:
            pad = self.mask_crop
            return tuple(
                Region.around(Whole().onto(mask, image.size), painted, pad)
                for image, mask in zip(self.images, self.masks, strict=True)
            )
        margins = self.margins or (0, 0, 0, 0)
        left, top = margins[0] > margins[2] == 0, margins[1] > margins[3] == 0
        exact = asked is None and (paste or self.margins is not None)
        return tuple(
            Padded.to(each.size, painted, left, top) if exact and each.size != painted else Whole()
            for each in self.images
        )

    def edges(self, places: Sequence[Place], painted: Size) -> tuple[Image.Image, ...]:
        """The control pictures as they are painted from; edges are found then: they survive no resize."""
        found: dict[tuple[int, Place], Image.Image] = {}
        keys = [(id(each), places[index] if places else Whole()) for index, each in enumerate(self.controls)]
        for key, each in zip(keys, self.controls, strict=True):
            if key not in found:
                placed = key[1].onto(each, painted)
                found[key] = edges.canny(placed) if self.canny else placed
        return tuple(found[key] for key in keys)

    def tell_resized(self, asked: Size | None, painted: Size, paste: bool) -> None:
        """A line for each picture that does not keep its shape, or that is given back at another size."""
        for image in sizes.distinct(self.images):
            if self.mask_crop is not None or (asked is None and (paste or self.margins)):
                continue
            cut = painted if asked is None else _inside(image.size, painted)
            sizes.tell_stretched(
                "picture",
                image.size,
                painted,
                f"crop it to {cut[0]}x{cut[1]} to keep its shape"
                + (", or give --paste to keep its size" if self.masks and not paste else ""),
                always=asked is None,
            )
            if paste and image.size != painted:
                sizes.tell_given_back(painted, image.size)
        for one, image in zip(self.masks, self.images, strict=True) if self.masks else ():
            sizes.tell_stretched("mask", one.size, image.size, "make it of the picture's size")
        for each in sizes.distinct(self.controls):
            of = self.images[0].size if self.images else painted
            cut = _inside(each.size, of)
            sizes.tell_stretched("control picture", each.size, of, f"crop it to {cut[0]}x{cut[1]}")
        if self.mask_blur and self.mask_crop is None and not paste:
            masks.tell_unused_blur()


def _margins(given: Any) -> Margins:
    left, top, right, bottom = numbers.whole("outpaint", given, "(left, top, right, bottom)")
    if not left + top + right + bottom:
        raise RequestError("--outpaint 0,0,0,0 adds nothing to paint; give a margin above 0")
    return left, top, right, bottom


def _inside(size: Size, shape: Size) -> Size:
    """The largest part of a picture that has a shape."""
    factor = min(size[0] / shape[0], size[1] / shape[1])
    return int(shape[0] * factor), int(shape[1] * factor)
