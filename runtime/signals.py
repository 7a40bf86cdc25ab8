"""Ctrl-C, SIGTERM and SIGHUP: what is open is closed, and the program dies of the signal itself.

A shell's loop goes on after a program that exits by itself, with whatever code, and stops after one that died of
SIGINT; so does `make`. Source: https://www.cons.org/cracauer/sigint.html.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Ended(KeyboardInterrupt):
    """A signal asks the program to end; raised wherever the main thread stands."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopped(BaseException):
    """The program ends for a signal, and all is tidy; the message is one line for the user."""

    def __init__(self, cause: KeyboardInterrupt, done: str = "") -> None:
        """Say what stopped it, and what is done so far."""
        self.number = cause.number if isinstance(cause, Ended) else int(signal.SIGINT)
        super().__init__(f"stopped by {signal.Signals(self.number).name}{done and f': {done}'}")


@contextmanager
def heard() -> Iterator[None]:
    """Raise `Ended` for the signals of `NAMES`, but for those that the parent has this process ignore (nohup)."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in NAMES):
            if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die(number: int) -> NoReturn:
    """End this process by the signal; where that is not possible, with the code that a shell gives it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)
