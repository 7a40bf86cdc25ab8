"""Progress of long work: as bars on a terminal, as lines elsewhere, as JSON for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as work goes on."""
Kind = Literal["auto", "none", "bar", "plain", "json"]
KINDS: tuple[Kind, ...] = ("auto", "none", "bar", "plain", "json")
APART = 10.0  # seconds between two lines that nobody has asked for


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@contextmanager
def shown(kind: Kind = "auto", of_bytes: bool = False) -> Iterator[Progress]:
    """Progress on stderr.

    Args:
        kind: "bar" for each thing that is told of; "plain" for a line at every tenth of it; "json" for an
            object {"what", "done", "total"} a line, whenever something is told; "none". "auto" is bars on a
            terminal, and elsewhere plain lines ten seconds apart: work that is done by then leaves none.
        of_bytes: what is counted is bytes, shown as such.
    """
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
        apart = APART
    else:
        apart = 0.0
    if kind == "bar":
        with _bars(of_bytes) as tell:
            yield tell
    else:
        yield {"none": silent, "json": _json, "plain": _lines(apart, of_bytes)}[kind]


def bars(of_bytes: bool = False) -> AbstractContextManager[Progress]:
    """`shown`, as it is best here."""
    return shown("auto", of_bytes)


def _json(what: str, done: int, total: int) -> None:
    _say(json.dumps({"what": what, "done": done, "total": total}))


def _lines(apart: float, of_bytes: bool) -> Progress:
    """Lines at every tenth of a thing, no two within `apart` seconds."""
    tenths: dict[str, int] = {}
    last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        tenth = 10 * done // total if total else 10
        now = time.monotonic()
        if tenth == tenths.get(what, 0) or now - last < apart:
            return
        tenths[what], last = tenth, now
        amounts = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if of_bytes else f"{done} of {total}"
        _say(f"{what}: {amounts}")

    return tell


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _bars(of_bytes: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    counter = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description:12}"), BarColumn(), counter, TimeElapsedColumn()
    with Bars(*columns, console=Console(stderr=True), redirect_stdout=False) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=done, total=total)

        yield tell
