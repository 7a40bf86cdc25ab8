"""Progress of long work, as bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as work goes on."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@contextmanager
def bars(of_bytes: bool = False) -> Iterator[Progress]:
    """Bars on stderr, one for each thing that is told of; none where stderr is not a terminal.

    Args:
        of_bytes: what is counted is bytes, shown as such.
    """
    if not sys.stderr.isatty():
        yield silent
        return
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
