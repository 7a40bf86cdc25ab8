"""Locks: one build at a time in one place, and whether who made a folder is still at work in it.

They are the kernel's (`flock`) and end with the process that holds them, however it ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flux_trt.runtime.errors import BuildError

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN)


@contextmanager
def alone(path: Path, place: Path, tell: Callable[[str], None] = lambda line: None) -> Iterator[bool]:
    """Hold the lock file `path` for the work in `place`; it is gone afterwards.

    Where the file system has no locks this is said, and the work goes on.

    Args:
        path: of the lock, in a folder that is there.
        place: what is locked, for messages.
        tell: called with a line.

    Yields:
        Whether the lock is held: what others have left may be removed.

    Raises:
        BuildError: another process holds it.
        OSError: the file cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = _lock(handle, place, tell)
            if not held or _is_at(path, handle):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last owner removed it in the meantime
    try:
        yield held
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def try_lock(folder: Path) -> Iterator[None]:
    """Mark a folder as one that somebody is at work in, where the file system can."""
    handle = _open(folder)
    try:
        _flock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether somebody may be at work in a folder; without locks nobody knows."""
    handle = _open(folder)
    try:
        return _flock(handle) is not None
    finally:
        if handle is not None:
            os.close(handle)


def _open(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:
        return None


def _flock(handle: int | None) -> OSError | None:
    """Lock it without waiting; what is in the way."""
    try:
        import fcntl

        if handle is None:
            return OSError(errno.EBADF, os.strerror(errno.EBADF))
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return OSError(errno.ENOSYS, "this system has no flock")
    except OSError as fault:
        return fault
    return None


def _lock(handle: int, place: Path, tell: Callable[[str], None]) -> bool:
    fault = _flock(handle)
    if fault is None:
        return True
    if fault.errno in BUSY:
        raise BuildError(f"another build is at work in {place}; wait for it to end")
    tell(
        f"warning: {place} cannot be locked ({fault.strerror}); "
        "see to it that no other build is at work there"
    )
    return False


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
