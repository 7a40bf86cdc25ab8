"""What a LoRA file says, in one form: terms, each of which changes some rows of one parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora.stored import Stored

Kind = Literal["LoRA", "LoHa", "LoKr", "diff", "set"]
"""A product of two matrices, Hadamard's of two such, Kronecker's; a difference; the value itself."""


@dataclass(frozen=True)
class Place:
    """Where a module's update goes: a parameter of a part, all of it or some rows."""

    part: str
    weight: str
    """The parameter's name in its family."""
    bias: str | None = None
    rows: tuple[int, int] | None = None
    """[first, last) of the parameter; None: all."""
    swapped: bool = False
    """Whether the file has the two halves of the rows the other way round."""
    widens: bool = False
    """Whether an update may have more columns than the weight: a control LoRA brings the condition's."""
    norm: bool = False
    """Whether it is a norm's scale, which may stand in a file as it is."""


@dataclass(frozen=True)
class Term:
    """One change of one parameter."""

    place: Place
    parameter: str
    kind: Kind
    tensors: Mapping[str, Stored]
    """Role -> tensor: down [r, in] and up [out, r]; hada_*; lokr_*; diff; set; and magnitude (DoRA)."""
    scale: float
    module: str
    """As the file calls it."""

    @property
    def rank(self) -> int | None:
        """Of a LoRA."""
        return self.tensors["down"].shape[0] if "down" in self.tensors else None

    @property
    def told(self) -> str:
        """All that is done with its tensors, but for their bytes: part of a reuse key."""
        where = {role: (info.offset, info.shape, info.dtype) for role, info in self.tensors.items()}
        return f"{self.kind} {self.scale!r} {self.place.rows} {self.place.swapped} {where}"


@dataclass(frozen=True)
class Asked:
    """A LoRA file and how strongly it is wanted."""

    path: Path
    strength: float = 1.0


@dataclass(frozen=True)
class Lora:
    """A file that was read."""

    path: Path
    form: str
    """Whose names it has, for people: kohya, diffusers."""
    terms: tuple[Term, ...]
    strength: float = 1.0
    notes: tuple[str, ...] = ()
    """What of it is not used, and why; a line each."""
    scaled_by: str = "nothing"
    """Where the scales are from: "alpha", "metadata" or "nothing"."""
    unknown: tuple[str, ...] = field(default=(), repr=False)
    """Keys that found no place; used as little as if they were not there."""

    def of(self, terms: Iterable[Term]) -> Lora:
        """The same with some of its terms alone."""
        return replace(self, terms=tuple(terms))

    @property
    def kinds(self) -> dict[str, int]:
        """What it is made of -> how many modules; a LoRA with magnitudes is a DoRA."""
        return dict(Counter(kind_of(term) for term in self.terms))

    @property
    def targets(self) -> dict[str, int]:
        """Part -> how many modules of it are changed."""
        return dict(Counter(part for part, _ in {(term.place.part, term.module) for term in self.terms}))

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": str(self.path),
            "form": self.form,
            "kinds": self.kinds,
            "ranks": self.ranks,
            "targets": self.targets,
            "scaled_by": self.scaled_by,
            "unknown": list(self.unknown),
            "notes": list(self.notes),
        }

    @property
    def ranks(self) -> list[int]:
        """All that occur, of its LoRAs."""
        return sorted({term.rank for term in self.terms if term.rank is not None})

    @property
    def describe(self) -> str:
        """For people, in one line."""
        ranks = self.ranks
        between = f" of rank {ranks[0]}{f' to {ranks[-1]}' if len(ranks) > 1 else ''}" if ranks else ""
        kinds = next(iter(self.kinds))
        if len(self.kinds) > 1:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        parts = ", ".join(
            f"{count} module{'s' * (count > 1)} of {part}" for part, count in self.targets.items()
        )
        return f"{self.form} form, {kinds}{between}, {parts}"


def kind_of(term: Term) -> str:
    """For people."""
    if term.kind == "diff" and term.parameter == term.place.bias:
        return "biases"
    if "magnitude" in term.tensors:
        return "DoRA" if term.kind == "LoRA" else f"{term.kind} with magnitudes"
    return term.kind


def strength_of(given: Any, of: object) -> float:
    """How strongly a LoRA is wanted.

    Raises:
        CheckpointError: that is no finite number.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise CheckpointError(f"the strength of {of} is {str(given)[:20]}; give a number such as 0.8")
    return float(given)


def by_parameter(terms: Iterable[Term], part: str) -> dict[str, list[Term]]:
    """The terms of a part, by parameter."""
    found: dict[str, list[Term]] = {}
    for term in terms:
        if term.place.part == part:
            found.setdefault(term.parameter, []).append(term)
    return found
