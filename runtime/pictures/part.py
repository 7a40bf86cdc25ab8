"""Part files: a file is written aside, checked and renamed; what a killed process left is removed."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

from flux_trt.runtime import lock

_NAME = re.compile(r"\..+\.(?:png|jpe?g|webp)\.(\d+)(?:-\d+)?\.part", re.IGNORECASE | re.DOTALL)
_count = itertools.count()

FRESH = 60
"""Seconds in which a file without a lock may still be one that is just being opened."""
OLD = 24 * 3600
"""Seconds after which a file is nobody's on a disk that knows no locks, where its owner may be elsewhere."""


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole, or leave what is there.

    Raises:
        OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{next(_count)}.part")
    try:
        with aside.open("wb") as file:
            lock.hold(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if (found := os.fstat(file.fileno()).st_size) != len(data):
                raise OSError(f"{found} of {len(data)} bytes arrived")
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove part files of pictures that no living process is writing, as far as that is allowed."""
    for path in folder.glob(".*.part"):
        named = _NAME.fullmatch(path.name)
        if named and not _owned(path, int(named[1])):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue


def _owned(path: Path, process: int) -> bool:
    """Its writer holds a lock on it, which the system takes away when the writer dies, on whatever
    machine."""
    try:
        with path.open("r+b") as file:
            state, age = lock.hold(file.fileno()), time.time() - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return True
    except OSError:
        state, age = "unknown", 0.0
    if state == "busy":
        return True
    return (_lives(process) and age < FRESH) if state == "held" else (_lives(process) or age < OLD)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


def _sync(folder: Path) -> None:
    """Flush the rename; some systems and disks cannot do that to a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
