"""How fast the machine is just now, told by a fixed piece of work, and turns taken only at its full speed.

A virtual machine shares cores with neighbours: for seconds at a time the same work takes half as long again.
What is measured in such a moment says nothing of the painter, so the turn is taken again, whoever has it and
whatever time it took.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

SETTLE = 0.1  # seconds: thread pools spin on for a while after their last work
PAUSE = 0.05  # seconds between two looks at a slow machine
TOLERANCE = 1.08  # a look scatters by 2 or 3 % on a quiet machine
LUCKY = 3  # as many looks must have been that fast before it counts as full speed
SIZE, ROUNDS = 1 << 17, 100  # of the work: exponentials in a core's own cache, some 5 ms

T = TypeVar("T")


def look() -> float:
    """Seconds that the slowest core takes just now for the piece of work, which is the same each time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        return max(pool.map(_work, range(cores)))


def _work(_: int) -> float:
    values = np.linspace(0.0, 1.0, SIZE, dtype=np.float32)
    room = np.empty_like(values)
    start = time.perf_counter()
    for _round in range(ROUNDS):
        np.exp(values, out=room)
    return time.perf_counter() - start


class Pace:
    """Takes turns at the machine's full speed, as long as its patience lasts."""

    def __init__(self, patience: float, look: Callable[[], float] = look) -> None:
        """`patience` is the seconds to spend at most on waiting and on turns taken again."""
        self.patience, self.retaken = patience, 0
        self._look, self._fastest = look, list[float]()

    def full(self) -> bool:
        """Whether the machine runs at its full speed just now: about as fast as it was ever seen to."""
        seen = self._look()
        self._fastest = heapq.nsmallest(LUCKY, [*self._fastest, seen])
        return seen <= TOLERANCE * self._fastest[-1]

    def hold(self, turn: Callable[[], T]) -> T:
        """What `turn` gives, begun and ended at full speed; with no patience left, as it comes."""
        while True:
            self._wait()
            began = time.monotonic()
            took = turn()
            time.sleep(SETTLE)
            if self.full() or self.patience <= 0:
                return took
            self.retaken += 1
            self.patience -= time.monotonic() - began

    def _wait(self) -> None:
        time.sleep(SETTLE)
        began = time.monotonic()
        while not self.full() and time.monotonic() - began < self.patience:
            time.sleep(PAUSE)
        self.patience -= time.monotonic() - began
