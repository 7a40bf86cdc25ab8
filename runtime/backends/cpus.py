"""The CPUs that this process may use, which are often fewer than the machine has, and what they can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import index
from pathlib import Path, PurePosixPath

from flux_trt.runtime.errors import BackendError

INFO = Path("/proc/cpuinfo")
FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
)
"""Those that make neural networks faster, in the order in which CPUs got them."""
GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def features(info: Path = INFO) -> tuple[str, ...] | None:
    """Which of `FEATURES` all CPUs here have; None where the system does not tell.

    Args:
        info: the system's list of CPUs.
    """
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return None
    each = [set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return tuple(name for name in FEATURES if name in set.intersection(*each)) if each else None


def threads_of(asked: int | None) -> int | None:
    """The threads that a CPU backend gets: those asked for, else the CPUs that this process may use.

    None leaves them to the library, where every CPU may be used: it looks at cores, caches and
    hyper-threads, of which it needs one each.

    Raises:
        BackendError: something else than a number from 1 on.
    """
    if asked is None:
        found = allowed()
        return found if found < (os.cpu_count() or 1) else None
    try:
        number = 0 if isinstance(asked, bool) else index(asked)
    except TypeError:
        number = 0
    if number < 1:
        raise BackendError(f"threads {asked!r} is not possible; give a whole number from 1 on")
    return number


def refuse_threads(asked: int | None, backend: str) -> None:
    """Refuse a number of threads where the work is a GPU's.

    Raises:
        BackendError: one was asked for.
    """
    if asked is not None:
        raise BackendError(
            f"{backend} works on a GPU, where threads say nothing; leave --threads out, or use --device cpu"
        )


def allowed(groups: Path = GROUPS, mounted: Path = MOUNTED) -> int:
    """CPUs that the scheduler gives this process (`taskset`), within its cgroups' quota (`docker --cpus`).

    Args:
        groups: which cgroups it is in.
        mounted: where those are to be seen.
    """
    given = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    quotas = [-int(-quota // 1) for quota in _quotas(groups, mounted)]
    return max(1, min([len(given), *quotas]))


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """CPUs of each group around this process that has a quota, cgroup v2 and v1.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "cpu.max"; Documentation/scheduler/sched-bwc.rst.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if not kinds:
            roots, read = [mounted, mounted / "unified"], _quota
        elif "cpu" in kinds.split(","):
            roots, read = [mounted / kinds, mounted / "cpu"], _quota_v1
        else:
            continue
        inside = PurePosixPath(place.lstrip("/"))
        # In a container the group's own path may not be there: its root is then the container's group.
        for root in roots:
            for folder in dict.fromkeys([inside, *inside.parents]):
                quota = read(root / folder)
                if quota:
                    yield quota


def _quota(folder: Path) -> float | None:
    try:
        most, period = (folder / "cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        most = int((folder / "cpu.cfs_quota_us").read_text())
        return None if most <= 0 else most / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
