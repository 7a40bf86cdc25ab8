"""Numbers as callers have them, Python's or NumPy's, made plain: each function gives it, or names its type.

Nothing is guessed: text is no number, 3.0 is no count, and True is neither.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from flux_trt.runtime.errors import RequestError


def kind(given: Any) -> str:
    """What something is, in words that never hold its values."""
    if given is None:
        return "None"
    name = type(given).__name__
    module = type(given).__module__.partition(".")[0]
    name = name if module == "builtins" else f"{module}.{name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def integer(name: str, given: Any) -> int:
    """A whole number."""
    try:
        if isinstance(given, bool):
            raise TypeError
        return operator.index(given)
    except TypeError:
        raise RequestError(f"{name} is {kind(given)}; give a whole number, such as 4") from None


def number(name: str, given: Any) -> float:
    """A finite number."""
    found = _real(given)
    if found is None:
        raise RequestError(f"{name} is {kind(given)}; give one number, such as 3.5")
    if not math.isfinite(found):
        raise RequestError(f"{name} {found} is not a finite number; give one such as 3.5")
    return found


def real(name: str, given: Any) -> float | None:
    """A number that may be left out, finite or not."""
    found = None if given is None else _real(given)
    if found is None and given is not None:
        raise RequestError(f"{name} is {kind(given)}; give one number, such as 3.5")
    return found


def flag(name: str, given: Any) -> bool:
    """True or False."""
    if isinstance(given, bool) or type(given).__name__ in ("bool", "bool_"):  # NumPy's
        return bool(given)
    raise RequestError(f"{name} is {kind(given)}; give True or False")


def whole(name: str, given: Any, form: str) -> tuple[int, ...]:
    """So many whole numbers as `form` has parts, from 0 on.

    Args:
        name: of the argument.
        given: a tuple, a list or an array.
        form: as in "(width, height)".
    """
    parts = form.count(",") + 1
    if (
        isinstance(given, (str, bytes, dict))
        or not hasattr(given, "__len__")
        or not hasattr(given, "__iter__")
    ):
        raise RequestError(f"{name} is {kind(given)}; give {form} in pixels")
    if len(given) != parts:
        raise RequestError(f"{name} has {len(given)} parts; give {form} in pixels")
    found = tuple(integer(name, each) for each in given)
    if min(found) < 0:
        raise RequestError(f"{name} has {min(found)}; give {form} in pixels, from 0 on")
    return found


def truly(given: Any) -> bool:
    """Whether something is given: not None, and not an empty list."""
    return given is not None and not (isinstance(given, (list, tuple)) and not given)


def _real(given: Any) -> float | None:
    if isinstance(given, (bool, str, bytes)) or getattr(given, "shape", ()) != ():
        return None
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError):
        return None
