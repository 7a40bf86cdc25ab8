"""Threads that take turns at something that only one may use at a time."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turn:
    """A lock that is given in the order in which threads ask for it; who has it may take it again.

    `threading.RLock` would do but for the order: a thread that paints batch after batch lets go of it for so
    short a time that another could wait for as long as there are batches.
    """

    def __init__(self) -> None:
        self._inside = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._owner: int | None = None
        self._taken = 0

    @property
    def mine(self) -> bool:
        """Whether the calling thread has it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> Turn:
        me = threading.get_ident()
        with self._inside:
            if self._owner in (None, me):
                self._owner = me
                self._taken += 1
                return self
            called = threading.Lock()
            called.acquire()
            self._waiting.append((me, called))
        try:
            called.acquire()
        except BaseException:  # Ctrl-C while waiting
            with self._inside:
                if (me, called) in self._waiting:
                    self._waiting.remove((me, called))
                else:
                    self._pass_on()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._inside:
            self._taken -= 1
            if self._taken == 0:
                self._pass_on()

    def _pass_on(self) -> None:
        """To the thread that has waited longest; nobody's else."""
        self._owner, self._taken = None, 0
        if self._waiting:
            self._owner, called = self._waiting.popleft()
            self._taken = 1
            called.release()
