"""A request on its way through the engine, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from flux_trt.runtime.course import Course
from flux_trt.runtime.errors import FluxTrtError
from flux_trt.runtime.painted import Painted
from flux_trt.runtime.painting import Painting
from flux_trt.runtime.tasks.request import Request
from flux_trt.serving.models import Model


@dataclass(frozen=True)
class Moved:
    """A picture has made a step."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class Partial:
    """What a picture is going to be, as far as it can be seen."""

    index: int
    number: int
    """From 0 on."""
    image: Image.Image


@dataclass(frozen=True)
class Done:
    """A picture is there."""

    index: int
    painted: Painted


@dataclass(frozen=True)
class Failed:
    """There will be no more of it."""

    fault: FluxTrtError | None
    """None: it was given up by the server itself."""
    why: str = ""
    again: bool = True
    """Whether it may go well when it is sent again; of a fault, its kind tells."""


Event: TypeAlias = Moved | Partial | Done | Failed
Tell = Callable[[Event], None]


@dataclass(eq=False)
class Work:
    """Pictures that one client asked for at once; what the engine notes of them is its own."""

    id: str
    model: Model
    request: Request
    tell: Tell
    """Called in the engine's thread; it must not wait."""
    partials: int = 0
    until: float | None = None
    """Of `time.monotonic`: when the client will have gone."""
    owner: str = ""
    warnings: list[str] = field(default_factory=list)
    cancelled: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    painting: Painting | None = None
    spared: bool = False
    """Whether memory was short for it alone, and what was only kept to be fast was freed."""
    waiting: list[int] = field(init=False)
    """Pictures that are not begun."""
    courses: dict[Course, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.request)))

    @property
    def key(self) -> Hashable:
        """What must be the same for pictures that can share runs; whether they do, their shapes decide."""
        seen = bool(self.request.controls) or self.request.task == "fill"
        return self.model.id, self.request.grids, seen, self.adapted

    @property
    def adapted(self) -> Hashable:
        """Its LoRAs; what is painted with others shares no run with it: their inputs have no rows."""
        return tuple((each.sha256, each.strength) for each in self.request.loras or ())

    @property
    def tokens(self) -> int:
        """Of a picture and its references."""
        return sum(rows * columns for rows, columns in self.request.grids)

    @property
    def pixels(self) -> int:
        """The same as pixels: what a row costs goes with it."""
        return self.tokens * self.request.patch**2

    @property
    def left(self) -> int:
        """Steps times rows that are still to go."""
        moves = len(self.waiting) * self.request.moves + sum(each.left for each in list(self.courses))
        return moves * self.request.copies

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.asked_at

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self.courses

    def previews(self, steps: int) -> list[int]:
        """The steps after which a partial picture is sent, evenly between noise and picture."""
        parts = self.partials + 1
        wanted = [round(steps * part / parts) for part in range(1, parts)]
        return sorted({step for step in wanted if 0 < step < steps})
