"""A call with pictures of several sizes, taken apart: a request for each size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flux_trt.runtime.tasks import validate
from flux_trt.runtime.tasks.opened import pictures, several
from flux_trt.runtime.tasks.request import Request

T = TypeVar("T")
EACH = ("prompt_2", "negative", "negative_2", "source", "image", "mask", "control", "canny")
"""Arguments that may have one value for each prompt."""
PICTURES = ("image", "control", "canny", "mask")
"""Those that are pictures; the first that there are decide the size."""
Part = tuple[Request, tuple[int, ...]]
"""A request, and where its pictures stand among all that were asked for."""


def apart(ask: Callable[..., Request], name: str, prompts: Any, asked: Mapping[str, Any]) -> list[Part]:
    """The requests of one call, which all are made, and checked, before any is painted.

    Args:
        ask: makes a request.
        name: of the argument with the prompts.
        prompts: one, or several.
        asked: the other arguments.

    Raises:
        RequestError: as `ask`.
    """
    texts = validate.texts(name, prompts)
    listed = {
        each: several(asked[each]) if each in PICTURES else _listed(asked[each])
        for each in EACH
        if asked.get(each) is not None
    }
    asked = {**asked, **{each: found for each, found in listed.items() if len(found) != 1}}
    decides = next((each for each in PICTURES if each in listed and each != "mask"), None)
    sizes: list[tuple[int, int]] = []
    if decides and asked.get("size") is None and len(listed[decides]) == len(texts) > 1:
        opened = pictures(decides, listed[decides])
        sizes = [each.size for each in opened]
    if len(set(sizes)) < 2:
        request = ask(**{name: prompts}, **asked)
        return [(request, tuple(range(len(request))))]
    count = validate.at_least("count", asked.get("count", 1))
    seeds = validate.seeds(asked.get("seed", 0), len(texts) * count)
    found: list[Part] = []
    for size in dict.fromkeys(sizes):
        chosen = [index for index, each in enumerate(sizes) if each == size]
        places = tuple(index * count + k for index in chosen for k in range(count))
        part = {
            each: [given[index] for index in chosen]
            for each, given in listed.items()
            if len(given) == len(texts)
        }
        part |= {name: [texts[index] for index in chosen], "seed": [seeds[place] for place in places]}
        found.append((ask(**{**asked, **part}), places))
    return found


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)


def in_order(parts: Iterable[tuple[Sequence[T], tuple[int, ...]]]) -> Iterator[T]:
    """The results of all parts in the order of the call."""
    found = {place: one for results, places in parts for place, one in zip(places, results, strict=True)}
    return (found[place] for place in sorted(found))
