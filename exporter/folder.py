"""A directory that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.errors import BuildError
from flux_trt.runtime.progress import Progress

CHUNK = 1 << 24


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well, and vanishes when not.

    Raises:
        BuildError: `out` is something other than a bundle or an empty directory, or cannot be written.
    """
    out = out.resolve()
    refuse_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as fault:
        raise BuildError(
            f"cannot write in {out.parent} ({fault.strerror}); give --out another place"
        ) from None
    try:
        yield aside
        aside.chmod(0o755)
        for path in sorted(aside.rglob("*")):
            sync(path)
        sync(aside)
        _replace(aside, out)
    except OSError as fault:
        raise BuildError(f"cannot write {out} ({fault.strerror}); check the disk") from fault
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_out(out: Path) -> None:
    """Refuse a place that holds something other than a bundle.

    Raises:
        BuildError: naming it.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / manifest.NAME).is_file()):
        raise BuildError(f"{out.resolve()} exists and is not a bundle; give --out another name")


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


def _replace(aside: Path, out: Path) -> None:
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
        out.rename(old / out.name)
    aside.rename(out)
    sync(out.parent)
    if old is not None:
        shutil.rmtree(old)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was before.

    Raises:
        BuildError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        aside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(0o644)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as fault:
        raise BuildError(f"cannot write {path} ({fault.strerror}); check the disk") from fault


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
