"""How closely a prompt is followed: a number that the model is told, or a second, negative run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks import numbers
from flux_trt.runtime.tasks.validate import texts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guided:
    """What becomes of a request's guidance."""

    told: float | None
    """What the model is told; None for a model without that input."""
    scale: float | None = None
    """Of true classifier-free guidance; None without."""
    negatives: tuple[str, ...] = ()
    """With it, the negative prompt of each prompt."""


def guided(
    manifest: Manifest,
    prompts: int,
    guidance: float | None = None,
    negative: str | Sequence[str] | None = None,
    true_cfg: float | None = None,
) -> Guided:
    """What was asked for, or the bundle's own.

    A model that was not distilled is guided by a negative prompt even when none is given: then `guidance` is
    the scale, and at 1 or less the second run is left out, as in diffusers' Flux2KleinPipeline.

    Args:
        manifest: of the bundle.
        prompts: how many.
        guidance: None: the bundle's.
        negative: one, or one for each prompt.
        true_cfg: scale of true classifier-free guidance.

    Raises:
        RequestError: what the bundle cannot do, or what does not go together.
    """
    guidance, true_cfg = numbers.real("guidance", guidance), numbers.real("true_cfg", true_cfg)
    rule = manifest.guidance
    if rule.kind == "true":
        if guidance is not None and true_cfg is not None:
            raise RequestError("guidance and true_cfg both say the scale of true guidance; give one of them")
        asked = true_cfg if guidance is None else guidance
        scale = asked if asked is not None else rule.default or 1.0
        if scale <= 1:
            if negative is not None:
                _tell_ignored(scale)
            return Guided(None)
        return Guided(None, *_true(rule.negative if negative is None else negative, scale, prompts))
    found = told(manifest, guidance)
    if negative is None and true_cfg is None:
        return Guided(found)
    if true_cfg is not None and true_cfg <= 1:
        _tell_ignored(true_cfg)
        return Guided(found)
    if true_cfg is None or negative is None:
        raise RequestError(
            "a negative prompt works through true classifier-free guidance, which works with a negative "
            'prompt; give both, such as --negative "" --true-cfg 4'
        )
    return Guided(found, *_true(negative, true_cfg, prompts))


def _tell_ignored(scale: float) -> None:
    """As diffusers: at 1 the negative prompt counts for nothing, and below it is not made to."""
    _log.warning(
        "true guidance of %g is none: the negative prompt is ignored; give a scale above 1, such as 4", scale
    )


def told(manifest: Manifest, asked: float | None) -> float | None:
    """What the model is told, or the bundle's default; None for a model without that input."""
    default = manifest.guidance.default
    if manifest.guidance.kind != "embedded":
        if asked is not None:
            raise RequestError(f"a {manifest.variant} bundle has no guidance; leave guidance out")
        return None
    found = default if asked is None else asked
    if found is not None and not math.isfinite(found):
        raise RequestError(f"guidance {found} is not a finite number; try {default}")
    return found


def _true(negative: str | Sequence[str] | None, scale: float, prompts: int) -> tuple[float, tuple[str, ...]]:
    """The scale, and a negative prompt for each prompt."""
    if not math.isfinite(scale):
        raise RequestError(f"true_cfg {scale} is not a finite number; try 4")
    found = texts("negative prompt", negative or "")
    if len(found) not in (1, prompts):
        raise RequestError(f"{len(found)} negative prompts are given for {prompts} prompts; give one each")
    return scale, found * prompts if len(found) == 1 else found
