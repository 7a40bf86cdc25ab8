"""How long things take here: measured while they are done, and so known in advance."""

from __future__ import annotations

from collections.abc import Hashable

SHARE = 0.2  # of the newest measurement


class Pace:
    """Seconds of one row in one step, by model and tokens."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[Hashable, int], float] = {}

    def learn(self, model: Hashable, tokens: int, rows: int, seconds: float) -> None:
        """A run of so many rows took so long."""
        key, found = (model, tokens), seconds / rows
        before = self._seconds.get(key)
        self._seconds[key] = found if before is None else before + SHARE * (found - before)

    def of(self, model: Hashable, tokens: int) -> float:
        """What one row and step will take: as measured, or in proportion to the nearest size that was."""
        if (model, tokens) in self._seconds:
            return self._seconds[model, tokens]
        known = [(abs(size - tokens), size) for of, size in self._seconds if of == model]
        if not known:
            return 0.0
        _, size = min(known)
        return self._seconds[model, size] * tokens / size
