"""Requests that can be painted together: the pictures are those of each alone, bit for bit."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from flux_trt.runtime.tasks.request import Request

PER_PICTURE = (
    "prompts",
    "prompts_2",
    "seeds",
    "boxes",
    "negatives",
    "negatives_2",
    "images",
    "masks",
    "places",
    "controls",
)
"""The fields of a request that have one value for each picture; all others must be the same."""

T = TypeVar("T")


def alike(one: Request, other: Request) -> bool:
    """Whether two can be painted together: all that is not a picture's own is the same."""
    return _shared(one) == _shared(other)


def joined(requests: Sequence[Request]) -> Request:
    """One request of all their pictures, in order.

    Args:
        requests: `alike`, at least one.
    """
    first = requests[0]
    found: dict[str, Any] = {
        name: sum((getattr(each, name) for each in requests), ()) for name in PER_PICTURE
    }
    if first.edit:
        texts = sum((each.edit.sources for each in requests if each.edit), ())
        found["edit"] = replace(first.edit, sources=texts)
    found["sources"] = {
        name: given if name == "reference" else sum((each.sources[name] for each in requests), ())
        for name, given in first.sources.items()
    }
    return replace(first, batch=sum(len(each) for each in requests), **found)


def gathered(
    pairs: Iterable[tuple[T, Request]], most: int, waiting: int = 64
) -> Iterator[list[tuple[T, Request]]]:
    """Groups of requests that are alike, in the order in which they are full.

    Args:
        pairs: a request with whatever belongs to it.
        most: of a group.
        waiting: requests in groups that are not full; with more, the oldest group goes as it is.
    """
    groups: list[list[tuple[T, Request]]] = []
    for item, request in pairs:
        group = next((each for each in groups if alike(each[0][1], request)), None)
        if group is None:
            groups.append(group := [])
        group.append((item, request))
        if len(group) == most:
            groups.remove(group)
            yield group
        elif sum(map(len, groups)) > waiting:
            yield groups.pop(0)
    yield from groups


def _shared(request: Request) -> dict[str, Hashable]:
    apart = {*PER_PICTURE, "batch", "references", "sources", "edit"}
    found = {each.name: getattr(request, each.name) for each in fields(request) if each.name not in apart}
    found |= {f"has {name}": bool(getattr(request, name)) for name in PER_PICTURE}
    found["reference"] = request.sources.get("reference", ())
    found["edit"] = request.edit and replace(request.edit, sources=())
    return found
