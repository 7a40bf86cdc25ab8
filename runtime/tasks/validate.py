"""The numbers and texts of a request, checked: each function gives what is used, or says what is wrong."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import TypeVar

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.image import moves

SEEDS = 2**64
T = TypeVar("T")


def texts(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """At least one text, each valid Unicode."""
    found = (given,) if isinstance(given, str) else tuple(given)
    if not found:
        raise RequestError(f"no {name} is given; give at least one (it may be empty)")
    for text in found:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} {text!r} is not valid Unicode; give it as UTF-8") from None
    return found


def negatives(negative: str | Sequence[str] | None, true_cfg: float | None, prompts: int) -> tuple[str, ...]:
    """A negative prompt for each prompt, or none."""
    if negative is None and true_cfg is None:
        return ()
    if true_cfg is None or negative is None:
        raise RequestError(
            "a negative prompt works through true classifier-free guidance, which works with a negative "
            'prompt; give both, such as --negative "" --true-cfg 4'
        )
    if not math.isfinite(true_cfg):
        raise RequestError(f"true_cfg {true_cfg} is not a finite number; try 4")
    found = texts("negative prompt", negative)
    if len(found) not in (1, prompts):
        raise RequestError(f"{len(found)} negative prompts are given for {prompts} prompts; give one each")
    return found * prompts if len(found) == 1 else found


def each(given: tuple[T, ...], count: int) -> tuple[T, ...]:
    """Every one `count` times in a row."""
    return tuple(one for one in given for _ in range(count))


def expect_moves(steps: int, strength: float) -> None:
    """Refuse a strength that leaves nothing to walk."""
    if not 0 <= strength <= 1:
        raise RequestError(f"strength {strength} is not possible; it is 0 to 1")
    if moves(steps, strength) < 1:
        raise RequestError(
            f"strength {strength} leaves none of {steps} steps to walk; any larger one leaves at least one"
        )


def seeds(seed: int | Sequence[int] | None, pictures: int) -> tuple[int, ...]:
    """One seed per picture; None draws the first."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    found = tuple(range(seed, seed + pictures)) if isinstance(seed, int) else tuple(seed)
    if len(found) != pictures:
        raise RequestError(
            f"{len(found)} seeds are given for {pictures} pictures; give one each, or one number"
        )
    if wrong := [one for one in found if not 0 <= one < SEEDS]:
        raise RequestError(f"seed {wrong[0]} is not possible; seeds are 0 to 2**64 - 1")
    return found


def guidance(manifest: Manifest, asked: float | None) -> float | None:
    """The guidance, or the bundle's; None for a model without."""
    if not manifest.model.guidance:
        if asked is not None:
            raise RequestError(f"a {manifest.variant} bundle has no guidance; leave guidance out")
        return None
    found = manifest.defaults.guidance if asked is None else asked
    if not math.isfinite(found):
        raise RequestError(f"guidance {found} is not a finite number; try {manifest.defaults.guidance}")
    return found


def at_least(name: str, number: int) -> int:
    """The number, if it is 1 or more."""
    if number < 1:
        raise RequestError(f"{name} is {number}; it must be at least 1")
    return number
