"""A directory that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flux_trt.exporter.exchange import exchange
from flux_trt.exporter.lock import alone
from flux_trt.exporter.place import refuse_out
from flux_trt.exporter.written import RANDOM, cannot_write, sync
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress

CHUNK = 1 << 24
Tell = Callable[[str], None]


@dataclass
class Aside:
    """A folder that is being written, and where it goes."""

    folder: Path
    out: Path
    """Resolved."""
    unchanged: bool = False
    """Set it where `out` is already what would take its place: then it is left as it is."""


@contextmanager
def written_aside(out: Path, tell: Tell = lambda line: None) -> Iterator[Aside]:
    """A fresh directory beside `out` that takes its place when the block ends well, and vanishes when not.

    What killed builds of that name have left is removed, and a bundle that one of them was about to replace
    is put back; both under the lock that `engines` takes too.

    Raises:
        BuildError: `out` is something other than a bundle or an empty directory, or cannot be written, or
            another build is at work there.
    """
    out = out.resolve()
    refuse_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with alone(lock_of(out), out, tell) as held:
            if held:
                _clear(out, tell)
            aside = Aside(Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent)), out)
            try:
                yield aside
                if not aside.unchanged:
                    _put(aside.folder, out)
            finally:
                remove(aside.folder)
    except OSError as fault:
        raise _explained(fault, out) from fault


def lock_of(out: Path) -> Path:
    """The lock of a bundle, beside it."""
    return out.with_name(f".{out.name}.lock")


def _explained(fault: OSError, out: Path) -> BuildError:
    """Which file it was, under the name it would have had."""
    if isinstance(fault.filename, str):
        path = Path(fault.filename)
        if not path.is_relative_to(out.parent):
            return BuildError(f"cannot read {path} ({fault.strerror}); check the path and the disk")
        parts = path.relative_to(out.parent).parts
        if len(parts) > 1 and parts[0].startswith(f".{out.name}.partial-"):
            return cannot_write(out.joinpath(*parts[1:]), fault)
        if len(parts) == 1:
            return cannot_write(out.parent, fault)
    return cannot_write(out, fault)


def _put(aside: Path, out: Path) -> None:
    """Give a folder its name; what had that name is gone afterwards."""
    aside.chmod(0o755)
    for path in sorted(aside.rglob("*")):
        sync(path)
    sync(aside)
    if not out.exists():
        aside.rename(out)
    elif not exchange(aside, out):
        _replace(aside, out)
    sync(out.parent)


def _replace(aside: Path, out: Path) -> None:
    """In two steps; a build killed between them leaves both, and the next one puts the old one back."""
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        out.rename(old / out.name)
        try:
            aside.rename(out)
        except OSError:
            (old / out.name).rename(out)
            raise
    finally:
        if out.exists():
            remove(old)


def _clear(out: Path, tell: Tell) -> None:
    """Remove what killed builds have left beside `out`, and put back what one was about to replace."""
    ours = re.compile(re.escape(f".{out.name}.") + f"(partial|old)-{RANDOM}")
    rests = [path for path in out.parent.iterdir() if ours.fullmatch(path.name) and path.is_dir()]
    if not (out / manifest.NAME).is_file():  # and nothing else is there
        olds = [rest / out.name for rest in rests if (rest / out.name / manifest.NAME).is_file()]
        if olds:
            if out.exists():
                out.rmdir()
            max(olds, key=lambda path: path.parent.stat().st_mtime).rename(out)
            sync(out.parent)
            tell(f"{out}: put back; a build was killed while it replaced it")
    for rest in rests:
        remove(rest)
        tell(f"{rest}: removed; a killed build left it")


def remove(folder: Path) -> None:
    """Remove a folder of ours, also one that was made read-only, as far as that is allowed."""
    for each, _, _ in os.walk(folder):
        try:
            Path(each).chmod(0o700)
        except OSError:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def existing(out: Path) -> Path:
    """The nearest folder above `out` that is there."""
    return next(folder for folder in out.resolve().parents if folder.is_dir())


def refuse_full_disk(needed: int, place: Path) -> None:
    """Refuse to begin what would not fit on the disk of `place`, in bytes.

    Raises:
        BuildError: with both sizes.
    """
    free = shutil.disk_usage(place).free
    if needed > free:
        raise BuildError(
            f"the bundle needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "use --precision bf16, or --out on another disk"
        )


def digest(path: Path, seen: Callable[[bytes], None] = lambda chunk: None) -> File:
    """Size and SHA-256 of a file, read in chunks; `seen` gets each."""
    with path.open("rb") as file:
        found, size = hashlib.sha256(), 0
        while chunk := file.read(CHUNK):
            found.update(chunk)
            size += len(chunk)
            seen(chunk)
    return File(bytes=size, sha256=found.hexdigest())


def digests(
    paths: Iterable[Path], progress: Progress, watched: Mapping[Path, Callable[[bytes], None]] | None = None
) -> dict[Path, File]:
    """Size and SHA-256 of many files, as one piece of work; `watched` get their file's chunks, too."""
    paths = sorted(set(paths))
    total, done = sum(path.stat().st_size for path in paths), 0

    def told(chunk: bytes, path: Path) -> None:
        nonlocal done
        done += len(chunk)
        progress("hash", done, total)
        if watched and path in watched:
            watched[path](chunk)

    return {path: digest(path, partial(told, path=path)) for path in paths}
