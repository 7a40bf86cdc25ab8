"""The memory that control groups leave a process: what containers and batch systems limit.

Source: Linux Documentation/admin-guide/cgroup-v2.rst, "Memory", and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # bytes; version 1 says "no limit" with a number near 2^63


@dataclass(frozen=True)
class _Names:
    """How a version calls what is read."""

    limit: str
    used: str
    cache: str
    """The line of memory.stat with the file cache that is given up first."""


V2 = _Names("memory.max", "memory.current", "inactive_file")
V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available(proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that each limit on the way from this process's groups to the root leaves.

    Args:
        proc: where the kernel tells of processes.
        mounted: where control groups are mounted.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(mounted, path, V2)
        elif "memory" in controllers.split(","):
            yield from _limits(mounted / "memory", path, V1)


def _limits(root: Path, path: str, names: _Names) -> Iterator[int]:
    """Inside of a container the path may be the host's: then the root that is mounted is the group."""
    group = root / path.lstrip("/")
    if ".." in group.parts or not group.is_dir():
        group = root
    while True:
        left = _left(group, names)
        if left is not None:
            yield left
        if group == root:
            return
        group = group.parent


def _left(group: Path, names: _Names) -> int | None:
    try:
        limit, used = (group / names.limit).read_text().strip(), int((group / names.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) >= UNLIMITED:
        return None
    return max(0, int(limit) - used + int(stat.get(names.cache, 0)))
