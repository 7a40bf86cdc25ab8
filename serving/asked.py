"""Which task a client's fields and pictures are, and the runtime's request for it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import FluxTrtError
from flux_trt.runtime.lora.chosen import Chosen
from flux_trt.runtime.tasks.request import STEPS, Request
from flux_trt.serving import told
from flux_trt.serving.errors import ApiError
from flux_trt.serving.errors import told as told_fault
from flux_trt.serving.fields import ALIASES, FLOW, Fields
from flux_trt.serving.limits import MEGA, Limits

QUALITY = {"low": 0.5, "medium": 1.0, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 2.5}
"""What quality makes of the bundle's number of steps."""
SEEDS = 2**32  # of which one is drawn where none is given: 32 bits are all that the noise uses


@dataclass(frozen=True)
class Pictures:
    """What was sent beside the fields, decoded."""

    images: list[Image.Image] = field(default_factory=list)
    mask: Image.Image | None = None


def request_of(
    manifest: Manifest,
    fields: Fields,
    pictures: Pictures | None,
    limits: Limits,
    warnings: list[str],
    loras: tuple[Chosen, ...] = (),
) -> Request:
    """The request, checked by the bundle and by what this server takes.

    Args:
        manifest: of the bundle.
        fields: what was sent.
        pictures: for an edit; None to paint from text.
        limits: of this server.
        warnings: gets what is to be said of the request.
        loras: that it is painted with.

    Raises:
        ApiError: 400, naming the parameter where it is known.
    """
    if fields.n > limits.pictures:
        raise ApiError(
            400,
            f"n {fields.n} is not possible: at most {limits.pictures} a request",
            param="n",
            code="invalid_value",
        )
    seed = secrets.randbelow(SEEDS) if fields.seed is None else fields.seed
    options: dict[str, Any] = {
        "size": fields.pixels,
        "steps": _steps(manifest, fields),
        "shift": fields.shift,
        "sigmas": fields.sigmas,
        "solver": fields.solver,
        "count": fields.n,
        "seed": seed,
        "lora": loras or None,
    }
    _expect_size(options["size"], limits)
    names = [*Fields.model_fields, *ALIASES]
    try:
        with told.heard(warnings):
            if pictures is not None and fields.source is not None:
                found = _flow_edit(manifest, fields, pictures, options)
            else:
                found = _painted(manifest, fields, pictures, options)
    except FluxTrtError as fault:
        raise told_fault(fault, names) from None
    _expect_size((found.width, found.height), limits)
    if found.moves > limits.steps:
        raise ApiError(
            400,
            f"steps {found.moves} is not possible: at most {limits.steps} here",
            param="steps",
            code="invalid_value",
        )
    return found


def _painted(
    manifest: Manifest, fields: Fields, pictures: Pictures | None, options: dict[str, Any]
) -> Request:
    own = ("guidance", "true_cfg", "negative", "prompt_2", "negative_2", "strength", "mask_blur", "mask_crop")
    options |= {name: value for name in own if (value := getattr(fields, name)) is not None}
    options |= {"paste": fields.paste, "auto_resize": fields.auto_resize}
    if fields.outpaint is not None:
        options["outpaint"] = fields.outpaint
    if pictures is not None:
        options |= _given(manifest, fields, pictures)
    return Request.of(manifest, fields.prompt, **options)


def _given(manifest: Manifest, fields: Fields, pictures: Pictures) -> dict[str, Any]:
    """What each picture is for; nothing that was sent is left over."""
    first, *rest = pictures.images
    found: dict[str, Any] = {}
    if "control" in manifest.tasks:
        found["canny" if fields.canny else "control"] = first
        if pictures.mask is not None:
            raise ApiError(400, "a mask is not for a model that paints from a control picture", param="mask")
    elif fields.canny:
        raise ApiError(400, "canny is for a model that paints from a control picture", param="canny")
    elif pictures.mask is not None or fields.outpaint is not None or fields.strength is not None:
        found["image"] = first
        if pictures.mask is not None:
            found["mask"] = pictures.mask
    elif "reference" in manifest.tasks:
        return {"reference": pictures.images}
    else:
        found["image"] = first
    if rest and "reference" not in manifest.tasks:
        raise ApiError(
            400,
            f"{len(pictures.images)} pictures are sent as image and this model takes 1; send one",
            param="image",
            code="invalid_value",
        )
    return found | ({"reference": rest} if rest else {})


def _flow_edit(manifest: Manifest, fields: Fields, pictures: Pictures, options: dict[str, Any]) -> Request:
    named = (
        "true_cfg",
        "negative",
        "prompt_2",
        "negative_2",
        "strength",
        "mask_blur",
        "mask_crop",
        "outpaint",
    )
    given = {name: getattr(fields, name) for name in (*named, "guidance")}
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong or pictures.mask is not None or fields.paste or fields.canny:
        name = wrong or ("mask" if pictures.mask is not None else "paste" if fields.paste else "canny")
        raise ApiError(
            400, f"{name} does not go with source, which makes it FlowEdit; leave one out", param=name
        )
    if len(pictures.images) > 1:
        raise ApiError(400, "FlowEdit changes one picture; send one as image", param="image")
    options |= {name: value for name in FLOW if (value := getattr(fields, name)) is not None}
    return Request.of_edit(manifest, pictures.images[0], fields.source or "", fields.prompt, **options)


def _steps(manifest: Manifest, fields: Fields) -> int | None:
    share = QUALITY.get(fields.quality)
    if fields.steps is not None or share is None:
        return fields.steps
    return max(1, round(share * (STEPS if fields.source is not None else manifest.defaults.steps)))


def _expect_size(size: tuple[int, int] | None, limits: Limits) -> None:
    if size and size[0] * size[1] > limits.megapixels * MEGA:
        raise ApiError(
            400,
            f"size {size[0]}x{size[1]} is not possible: at most {limits.megapixels:g} megapixels here",
            param="size",
            code="invalid_value",
        )
