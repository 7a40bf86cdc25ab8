"""The texts and seeds of a request, checked: each function gives what is used, or says what is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.image import moves
from flux_trt.runtime.tasks.numbers import integer, kind, number, whole

SEEDS = 2**64
T = TypeVar("T")


def texts(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """At least one text, each valid Unicode."""
    if not isinstance(given, (str, list, tuple)):
        given = (
            tuple(given) if isinstance(given, Iterable) and not isinstance(given, (bytes, dict)) else (given,)
        )
    found = (given,) if isinstance(given, str) else tuple(given)
    if not found:
        raise RequestError(f"no {name} is given; give at least one (it may be empty)")
    for text in found:
        if not isinstance(text, str):
            raise RequestError(f"{name} is {kind(text)}; give text, or a list of texts")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name} {text!r} is not valid Unicode; give it as UTF-8") from None
    return found


def second(name: str, given: str | Sequence[str] | None, prompts: int, encoders: int) -> tuple[str, ...]:
    """What the second text encoder reads, for each prompt; empty where it reads the prompt itself."""
    if given is None:
        return ()
    if encoders != 2:
        raise RequestError(
            f"{name} is for the second of two text encoders, and this bundle has {encoders}; leave it out"
        )
    found = texts(name, given)
    if len(found) not in (1, prompts):
        raise RequestError(
            f"{len(found)} texts are given as {name} for {prompts} prompts; give one each, or one for all"
        )
    return found * (prompts // len(found))


def each(given: tuple[T, ...], count: int) -> tuple[T, ...]:
    """Every one `count` times in a row."""
    return tuple(one for one in given for _ in range(count))


def size(given: Any) -> tuple[int, int] | None:
    """(width, height), if it is asked for."""
    if given is None:
        return None
    width, height = whole("size", given, "(width, height)")
    return width, height


def strength(given: Any) -> float | None:
    """How much of a picture is painted anew, 0 to 1, if it is said."""
    found = None if given is None else number("strength", given)
    if found is not None and not 0 <= found <= 1:
        raise RequestError(f"strength {found:g} is not possible; it is 0 to 1")
    return found


def expect_moves(steps: int, strength: float) -> None:
    """Refuse a strength that leaves nothing to walk."""
    if moves(steps, strength) < 1:
        raise RequestError(
            f"strength {strength} leaves none of {steps} steps to walk; any larger one leaves at least one"
        )


def seeds(seed: Any, pictures: int) -> tuple[int, ...]:
    """One seed per picture; None draws the first."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    if hasattr(seed, "initial_seed"):
        raise RequestError(f"seed is {kind(seed)}; give its number, generator.initial_seed()")
    if isinstance(seed, Iterable) and not isinstance(seed, (str, bytes, dict)) and getattr(seed, "ndim", 1):
        found = tuple(integer("seed", one) for one in seed)
    else:
        first = integer("seed", seed)
        found = tuple(range(first, first + pictures))
    if len(found) != pictures:
        raise RequestError(
            f"{len(found)} seeds are given for {pictures} pictures; give one each, or one number"
        )
    if wrong := [one for one in found if not 0 <= one < SEEDS]:
        raise RequestError(f"seed {wrong[0]} is not possible; seeds are 0 to 2**64 - 1")
    return found


def at_least(name: str, given: Any) -> int:
    """The number, if it is 1 or more."""
    found = integer(name, given)
    if found < 1:
        raise RequestError(f"{name} is {found}; it must be at least 1")
    return found
