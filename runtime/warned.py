"""Warnings, as the commands print them: one line on stderr, "warning: ...", that is not too long."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST = 300
"""Characters of a message; what is beyond is counted, not shown."""


def line(message: str) -> str:
    """The line of a message."""
    text = " ".join(message.split())
    rest = len(text) - MOST
    return f"warning: {text}" if rest <= 0 else f"warning: {text[:MOST]}... ({rest} more characters)"


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _print(record.getMessage())


@contextmanager
def lines() -> Iterator[None]:
    """While it lasts, print what flux_trt logs as a warning, and Python's own warnings, in this way."""
    handler, logger, before = _Lines(logging.WARNING), logging.getLogger("flux_trt"), warnings.showwarning

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        _print(str(message))

    level = logger.level
    logger.setLevel(logging.WARNING)  # of its own: some libraries raise the root's, which would silence us
    logger.addHandler(handler)
    warnings.showwarning = show
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        warnings.showwarning = before


def _print(message: str) -> None:
    print(line(message), file=sys.stderr)  # click.echo would write over progress bars
