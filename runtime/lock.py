"""A lock on an open file: of processes that would write the same thing, one at a time."""

from __future__ import annotations

from typing import Literal

Lock = Literal["held", "busy", "unknown"]


def hold(descriptor: int) -> Lock:
    """Lock an open file until it is closed, or its process ends in whatever way; nothing waits.

    Returns:
        "held": this process has it now. "busy": another one has, which is said for EWOULDBLOCK alone.
        "unknown": locks do not work there, as on some network disks, or not at all on this system.
    """
    try:
        import fcntl
    except ImportError:
        return "unknown"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    except OSError:
        return "unknown"
    return "held"
