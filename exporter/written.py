"""Files that are known to be on the disk: written aside, flushed, compared with what was written, renamed.

Every file that the exporter makes goes through here, those of other libraries as bytes: these report a full
disk late or not at all. A limit of file sizes, a quota, FAT's 4 GB and a lost network disk look the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from flux_trt.exporter.lock import is_held, try_lock
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.errors import BuildError

CHUNK = 1 << 24
RANDOM = "[a-z0-9_]{8}"
"""How the names end that `tempfile` makes."""
ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some of the quota, or choose another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose a file system that takes larger ones",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
}


def cannot_write(path: Path, fault: OSError) -> BuildError:
    """What went wrong with a file or folder, in one line."""
    advice = ADVICE.get(fault.errno or 0, "check the disk")
    return BuildError(f"cannot write {path} ({fault.strerror or fault}); {advice}")


class Written:
    """A file that is written from its beginning to its end, hashed on the way.

    Use as a context manager; leaving it flushes the file to the disk and compares sizes. `record` has size
    and SHA-256 then.

    Raises:
        OSError: with the file's name: it cannot be written, or the disk has not all of it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.nbytes, self.record = path, 0, File(bytes=0, sha256=hashlib.sha256().hexdigest())
        self._hash = hashlib.sha256()
        with self._named():
            self._file = path.open("xb")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        with self._named():
            self._file.write(view)
        self._hash.update(view)
        self.nbytes += view.nbytes

    def close(self) -> File:
        """Flush and compare; closing twice is harmless."""
        with self._named():
            if not self._file.closed:
                try:
                    self._file.flush()
                    os.fsync(self._file.fileno())
                finally:
                    self._file.close()
            there = self.path.stat().st_size
            if there != self.nbytes:
                raise OSError(errno.EIO, f"{self.nbytes} bytes were written and {there} are there")
        self.record = File(bytes=self.nbytes, sha256=self._hash.hexdigest())
        return self.record

    def __enter__(self) -> Written:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError):  # the same one again: what could not be written still waits in the buffer
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise OSError(fault.errno, fault.strerror, str(self.path)) from None


def write_file(path: Path, data: bytes) -> File:
    """Write a new file in a folder that is itself still aside.

    Raises:
        OSError: it cannot be written.
    """
    with Written(path) as file:
        file.write(data)
    return file.record


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was before.

    What a killed process has left of the same file is removed.

    Raises:
        BuildError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            with try_lock(folder):
                write_file(folder / path.name, data)
                (folder / path.name).replace(path)
        finally:
            (folder / path.name).unlink(missing_ok=True)
            folder.rmdir()
        sync(path.parent)
    except OSError as fault:
        raise cannot_write(path, fault) from fault


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` have left beside it; those at work hold a lock on theirs."""
    ours = re.compile(re.escape(f".{path.name}.") + RANDOM)
    for rest in [each for each in path.parent.iterdir() if ours.fullmatch(each.name)]:
        if rest.is_dir() and not is_held(rest):
            (rest / path.name).unlink(missing_ok=True)
            with suppress(OSError):
                rest.rmdir()


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy of it where the file system has no hard links.

    Raises:
        OSError: neither can be made.
    """
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, Written(target) as new:
            while chunk := old.read(CHUNK):
                new.write(chunk)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
