"""The loops of a pipeline: on a GPU kept by shape, with buffers and recording; lent to one walk at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flux_trt.runtime.sampling.loop import Loop, LoopShape


class Loops:
    """Loops by shape. A walk has its loop to itself: a second one of the same shape gets another."""

    def __init__(self, make: Callable[[LoopShape], Loop], keep: int) -> None:
        """Make none yet.

        Args:
            make: a loop of a shape.
            keep: how many shapes are kept when their walk is over; 0 on a CPU, where nothing is gained.
        """
        self._make, self._keep = make, keep
        self._kept: OrderedDict[LoopShape, Loop] = OrderedDict()
        # Reentrant: a generator that is dropped gives its loop back wherever the collector finds it.
        self._lock = threading.RLock()
        self._closed = False

    @contextmanager
    def lent(self, of: LoopShape) -> Iterator[Loop]:
        """A loop of the shape, until the end of the block.

        Raises:
            GpuMemoryError: the buffers of a new one do not fit.
        """
        with self._lock:
            loop = self._kept.pop(of, None)
            while loop is None and self._keep and len(self._kept) >= self._keep:
                self._kept.popitem(last=False)[1].close()
        loop = loop or self._make(of)
        try:
            yield loop
        finally:
            self._give_back(of, loop)

    def __iter__(self) -> Iterator[Loop]:
        """Those that are kept, the last used last."""
        return iter(tuple(self._kept.values()))

    def forget(self) -> None:
        """Free what is kept; others can be made."""
        with self._lock:
            while self._kept:
                self._kept.popitem()[1].close()

    def close(self) -> None:
        """Free what is kept; what is lent is freed when it comes back. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self.forget()

    def _give_back(self, of: LoopShape, loop: Loop) -> None:
        with self._lock:
            if self._closed or not self._keep or of in self._kept:
                loop.close()
                return
            self._kept[of] = loop
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)[1].close()
