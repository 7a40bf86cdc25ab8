"""Ctrl-C, SIGTERM and SIGHUP: what is open is closed, and the program dies of the signal itself.

A shell's loop goes on after a program that exits by itself, with whatever code, and stops after one that died
of SIGINT; so does `make`. Source: https://www.cons.org/cracauer/sigint.html.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(BaseException):
    """A signal ends the program; raised wherever the main thread stands, and in its way all is made tidy.

    The message is one line for the user. Not a KeyboardInterrupt, which libraries turn into something else.
    """

    def __init__(self, number: int, done: str = "") -> None:
        """By which signal, and what is done so far."""
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}{done and f': {done}'}")


_held = 0
_waiting: list[int] = []


@contextmanager
def heard() -> Iterator[None]:
    """Raise `Stopped` for the signals of `NAMES`, but for those that the parent wants ignored (nohup)."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in NAMES):
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Put off the first signal until the block ends, so that a file and the note of it are both there."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _waiting and not _held:
        raise Stopped(_waiting.pop())


def die(number: int) -> NoReturn:
    """End this process by the signal; where that is not possible, with the code that a shell gives it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def _end(number: int, frame: FrameType | None) -> None:
    if _held and not _waiting:
        _waiting.append(number)
        return
    _waiting.clear()
    raise Stopped(number)
