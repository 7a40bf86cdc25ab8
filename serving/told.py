"""What the runtime warns of, for whom it is: it goes into the answer, and never into a log.

A warning may repeat what was asked for, such as the end of a prompt that the model does not read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listening: ContextVar[list[str] | None] = ContextVar("listening", default=None)


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = _listening.get()
        if lines is not None:
            lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[None]:
    """While it lasts, warnings of the runtime are for `heard` alone."""
    logger = logging.getLogger("flux_trt.runtime")
    listener, before = _Listener(logging.WARNING), (logger.level, logger.propagate)
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)  # of its own, as in `warned.lines`
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def heard(lines: list[str]) -> Iterator[None]:
    """While it lasts, add what is warned of in this thread, each line once."""
    found: list[str] = []
    token = _listening.set(found)
    try:
        yield
    finally:
        _listening.reset(token)
        lines += [line for line in dict.fromkeys(found) if line not in lines]
