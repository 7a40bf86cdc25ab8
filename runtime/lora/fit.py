"""Do a LoRA's tensors fit the model that they are for? Asked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import AGAIN
from flux_trt.runtime.lora.term import Lora, Term

Shape = tuple[int, ...]
Shapes = Mapping[str, Mapping[str, Shape]]
"""Part -> parameter -> its shape."""


def widened(lora: Lora, shapes: Shapes) -> dict[str, Shape]:
    """Parameters of the transformer that get more columns, and the shape that they then have."""
    found: dict[str, Shape] = {}
    for term in lora.terms:
        own = shapes.get(term.place.part, {}).get(term.parameter, ())
        if term.place.widens and term.kind == "LoRA" and len(own) == 2:
            columns = math.prod(term.tensors["down"].shape[1:])
            if columns > own[1]:
                found[term.parameter] = (own[0], columns)
    return found


def check(lora: Lora, shapes: Shapes, model: str) -> None:
    """Every term has the shape of what it changes, and nothing but finite numbers.

    Raises:
        CheckpointError: one has not; if most have not, it is for another model.
    """
    terms = [term for term in lora.terms if term.place.part in shapes]
    wrong = [(term, why) for term in terms if (why := _misfit(term, shapes[term.place.part]))]
    if wrong:
        term, why = wrong[0]
        raise CheckpointError(
            f"{lora.path} does not fit {model}: {term.module} {why}"
            + (f", and {len(wrong) - 1} more of {len(terms)}" if len(wrong) > 1 else "")
            + (
                "; it is for a model of another size"
                if len(wrong) > len(terms) / 2
                else "; it is damaged, or for another model"
            )
        )
    for term in terms:
        for role, info in term.tensors.items():
            if not np.isfinite(info.read()).all():
                raise CheckpointError(
                    f"{lora.path}: {term.module} ({role}) has values that are not finite; {AGAIN}"
                )


def _misfit(term: Term, shapes: Mapping[str, Shape]) -> str | None:
    """What of a term's shapes does not fit."""
    own = shapes.get(term.parameter)
    if own is None:
        return "is not in it"
    first, last = term.place.rows or (0, own[0])
    if not 0 <= first < last <= own[0] or (term.place.swapped and own[0] % 2):
        return f"changes rows {first} to {last} of {own[0]}"
    target = (last - first, *own[1:])
    said = {role: list(info.shape) for role, info in term.tensors.items()}
    if any(math.prod(info.shape) == 0 for info in term.tensors.values()):
        return f"is empty ({said})"
    magnitude = term.tensors.get("magnitude")
    if magnitude is not None and magnitude.shape not in (target[:1], (target[0], 1), (1, *target[1:])):
        return f"has magnitudes {list(magnitude.shape)} and changes {list(target)}"
    made = _shape(term)
    if made is None:
        return f"has tensors that do not fit together: {said}"
    if (rank := term.rank) is not None and rank > max(target):
        return f"has a rank of {rank}, more than the sides of {list(target)}"
    narrower = term.place.widens and len(made) == 2 and made[0] == target[0] and made[1] < target[1]
    if made != target and not (narrower and term.kind == "LoRA"):
        return f"makes {list(made)} and changes {list(target)}"
    return None


def _shape(term: Term) -> Shape | None:
    """Of what a term makes; None: its tensors do not fit together."""
    found = {role: _flat(info.shape) for role, info in term.tensors.items() if role != "magnitude"}
    if term.kind in ("diff", "set"):
        return term.tensors["diff" if term.kind == "diff" else "set"].shape
    if any(len(shape) != 2 for shape in found.values()):
        return None
    if term.kind == "LoRA":
        return _product(found["up"], found["down"])
    if term.kind == "LoHa":
        one = _product(found["hada_w1_a"], found["hada_w1_b"])
        return one if one == _product(found["hada_w2_a"], found["hada_w2_b"]) else None
    one, other = (
        found[name] if name in found else _product(found[f"{name}_a"], found[f"{name}_b"])
        for name in ("lokr_w1", "lokr_w2")
    )
    return (one[0] * other[0], one[1] * other[1]) if one and other else None


def _product(one: Shape, other: Shape) -> Shape | None:
    return (one[0], other[1]) if one[1] == other[0] else None


def _flat(shape: Shape) -> Shape:
    """A 1x1 convolution's as a matrix's."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
