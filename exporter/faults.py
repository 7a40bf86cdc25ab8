"""Faults that are met on the way: the first one ends the work, or all are collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flux_trt.runtime.errors import FluxTrtError


class Faults:
    """What is wrong with a checkpoint and what is asked of it."""

    def __init__(self, collect: bool = False) -> None:
        """Args: collect: go on after a fault, and keep it; False: raise it."""
        self.found: list[FluxTrtError] = []
        self._collect = collect

    @contextmanager
    def met(self) -> Iterator[None]:
        """What is done in this block may fail without harm to what follows it."""
        try:
            yield
        except FluxTrtError as fault:
            if not self._collect:
                raise
            self.found.append(fault)
