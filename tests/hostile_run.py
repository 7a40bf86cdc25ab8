"""Runs cases in child processes, so that what kills a process is found, with limits and watched folders."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import struct
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flux_trt.runtime.errors import FluxTrtError

SECONDS = 20
"""A case that takes longer is a fault."""
MEMORY = 3 << 30
"""Address space that a child may take beyond what its imports have."""
MESSAGE = 4000
OPENED = 0x20 | 0x2 | 0x100  # IN_OPEN, IN_MODIFY, IN_CREATE
QUIET = (
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    "/usr",
    "/lib",
    "/etc/localtime",
    "/etc/ld.so.cache",
    str(Path("~/intel").expanduser()),
)  # where the openvino package keeps whether it may send statistics


@dataclass(frozen=True)
class Target:
    """A reader of files that others wrote."""

    make: Callable[[random.Random, Path], object]
    """Writes a case into an empty folder; what it returns is handed on."""
    read: Callable[[Path, object], None]
    """Reads it; raises FluxTrtError for a refusal."""


@dataclass
class Outcome:
    """What became of a target's cases."""

    cases: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    outside: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """What went wrong -> how often."""
    seeds: dict[str, str] = field(default_factory=dict)
    """What went wrong -> a case of it."""

    def note(self, case: str, verdict: str) -> None:
        self.cases += 1
        if verdict == "accepted":
            self.accepted += 1
        elif verdict == "refused":
            self.refused += 1
        else:
            self.outside += verdict.startswith("outside")
            self.crashes += not verdict.startswith("outside")
            self.kinds[verdict] += 1
            self.seeds.setdefault(verdict, case)


def run(
    name: str,
    target: Target,
    seed: int,
    cases: int,
    folder: Path,
    found: Outcome | None = None,
    start: int = 0,
) -> Outcome:
    """Cases `seed:start` to `seed:cases-1` of a target, in children that are replaced when they die.

    They are forked: beside other threads use `hostile_sample.outcomes`.
    """
    found, at = found or Outcome(), start
    while at < cases:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(name, target, seed, range(at, min(at + 500, cases)), folder, writer)
        os.close(writer)
        with os.fdopen(reader, "r", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.endswith("\n"):
                    found.note(f"{name} {seed}:{at}", line.strip())
                    at += 1
        status = os.waitpid(child, 0)[1]
        if status:
            code = os.waitstatus_to_exitcode(status)
            what = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited {code}"
            found.note(f"{name} {seed}:{at}", what)
            at += 1
    return found


def one(
    target: Target, name: str, seed: int, number: int, folder: Path, rng: random.Random | None = None
) -> str:
    """The verdict on one case, in this process."""
    case, outside = folder / "case", folder / "outside"
    for each in (case, outside):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir(parents=True)
    (outside / "secret").write_bytes(b"\0" * 4096)
    made = target.make(rng or random.Random(f"{name} {seed}:{number}"), case)
    with _Watch(outside) as watch:
        try:
            target.read(case, made)
            verdict = "accepted"
        except FluxTrtError as fault:
            said = str(fault)
            verdict = "refused"
            if not said or len(said.splitlines()) != 1 or not said.isprintable() or len(said) > MESSAGE:
                verdict = f"not one line: {said[:80]!r}"
        except BaseException as fault:
            last = traceback.extract_tb(fault.__traceback__)
            ours = [
                each
                for each in last
                if "/tests/" not in each.filename and "site-packages" not in each.filename
            ]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"
            verdict = f"{type(fault).__name__} in {place}: {str(fault)[:60]!r}"
    return f"outside: {watch.seen()}" if watch.seen() else verdict


class _Watch:
    """Files of a folder that are opened by anyone, native code too (inotify), and by Python anywhere."""

    hooked: list[str] | None = None

    def __init__(self, folder: Path) -> None:
        self._folder, self._found = folder, [""]

    def __enter__(self) -> _Watch:
        libc = ctypes.CDLL(None)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        libc.inotify_add_watch(self._fd, os.fsencode(self._folder), OPENED)
        _hook(self._folder.parent / "case")
        _opened.clear()
        return self

    def __exit__(self, *_: object) -> None:
        global _allowed
        _allowed = None
        self._found = list(_opened)
        try:
            data = os.read(self._fd, 65536)
            self._found += ["outside/"] if struct.unpack_from("iIII", data)[1] & OPENED else []
        except BlockingIOError:
            pass
        os.close(self._fd)

    def seen(self) -> str:
        """What was opened, or nothing."""
        return ", ".join(sorted(set(self._found)))[:200]


_allowed: tuple[str, ...] | None = None
_opened: list[str] = []
_hooks: list[bool] = []


def _hook(case: Path) -> None:
    global _allowed
    sources = {os.path.realpath(Path(sys.modules[name].__file__ or "").parents[1])
               for name in ("flux_trt.runtime.errors",)}  # fmt: skip
    prefixes = {os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, *sys.path) if each}
    _allowed = (os.path.realpath(case), *sources, *prefixes, *QUIET)
    if not _hooks:
        _hooks.append(True)
        sys.addaudithook(_audit)


def _audit(event: str, args: tuple[object, ...]) -> None:
    if event != "open" or _allowed is None or not isinstance(args[0], str | bytes):
        return
    path = os.path.realpath(os.fsdecode(args[0]))
    if not any(path == each or path.startswith(each + "/") for each in _allowed):
        _opened.append(path)


def _work(name: str, target: Target, seed: int, numbers: range, folder: Path, writer: int) -> None:
    """A child's life; never returns."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for each in (0, 1, 2):
            os.dup2(null, each)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            signal.alarm(SECONDS)
            verdict = one(target, name, seed, number, folder)
            os.write(writer, (" ".join(verdict.split()) + "\n").encode("utf-8", "backslashreplace"))
    except BaseException:
        os._exit(70)
    os._exit(0)
