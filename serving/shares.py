"""Time shared evenly among those who want it, whoever comes when."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Shares(Generic[Name]):
    """Seconds that each of those who are here has had."""

    def __init__(self) -> None:
        """Nobody is here."""
        self._had: dict[Name, float] = {}

    def least(self, here: Iterable[Name], credit: Mapping[Name, float] | None = None) -> list[Name]:
        """Who is here, who has had least first; whoever was here and is not is forgotten.

        Args:
            here: all who want time now.
            credit: seconds that somebody is thought to have had less.
        """
        names = list(here)
        # Who comes anew begins where the others are: what was not used before is not owed.
        known = min((self._had[name] for name in names if name in self._had), default=0.0)
        self._had = {name: max(self._had.get(name, known), known) for name in names}
        given = credit or {}
        return sorted(names, key=lambda name: self._had[name] - given.get(name, 0.0))

    def charge(self, name: Name, seconds: float) -> None:
        """Somebody has had so much."""
        self._had[name] = self._had.get(name, 0.0) + seconds
