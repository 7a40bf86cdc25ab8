"""What stands for pictures that a request takes: margins to outpaint, a picture to take edges of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks import edges
from flux_trt.runtime.tasks.fill import outpaint
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.sources import sources_of


def request(manifest: Manifest, prompt: str | Sequence[str], options: dict[str, Any]) -> Request:
    """The request of a prompt and the options of `flux-run generate`, or the fields of a job.

    Raises:
        RequestError: options that say two things at once, or something that the bundle cannot do.
    """
    made = Request.of(manifest, prompt, **expanded(manifest, options))
    if (margins := options.get("outpaint")) is not None:
        image = sources_of(options["image"], [picture.read(options["image"])]) * len(made)
        made = replace(made, outpaint=margins, sources={**made.sources, "image": image, "mask": ()})
    if (canny := options.get("canny")) is not None:
        control = sources_of(canny, [picture.read(canny)]) * len(made)
        made = replace(made, canny=True, sources={**made.sources, "control": control})
    return made


def expanded(manifest: Manifest, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Request.of`, from the options of `flux-run generate` or the fields of a job.

    Raises:
        RequestError: options that say two things at once, or a picture that cannot be read.
    """
    found = dict(options)
    margins, canny = found.pop("outpaint", None), found.pop("canny", None)
    if margins is not None:
        if found.get("image") is None:
            raise RequestError("--outpaint extends a picture; give the picture with --image")
        if found.get("mask") is not None:
            raise RequestError("--outpaint and --mask both say what to paint; give one of them")
        found["image"], found["mask"] = outpaint(picture.read(found["image"]), margins)
    if canny is not None:
        if found.get("control") is not None:
            raise RequestError("--canny makes the control picture that --control gives; give one of them")
        found["control"] = _edges(manifest, canny, found)
    return found


def _edges(manifest: Manifest, path: Any, found: dict[str, Any]) -> Any:
    """The edges of a picture at the size that is painted: edges do not survive a resize."""
    from PIL import Image

    image, patch = picture.read(path), manifest.model.patch
    size = found.get("size") or (image.width // patch * patch, image.height // patch * patch)
    found["size"] = size
    return edges.canny(Image.fromarray(picture.as_pixels(image, size)))
