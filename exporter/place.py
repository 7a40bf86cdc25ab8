"""Where a bundle may be written: nothing that is not a build's own is ever replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from flux_trt.exporter.written import RANDOM
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.engine import FOLDER, PLAN, RECORD
from flux_trt.runtime.errors import BuildError, BundleError

MOUNTS = Path("/proc/self/mountinfo")
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\.nfs.*")
"""What systems leave in folders that people open."""
ENGINE = re.compile(r"[a-z0-9_]+-[0-9a-f]{16}")


def refuse_out(out: Path) -> None:
    """Refuse a place that a bundle cannot take: what is in it would be lost, or it cannot be renamed.

    Raises:
        BuildError: naming what is in the way.
    """
    refuse_odd_name(out)
    out = out.resolve()
    if is_mount(out):
        raise BuildError(
            f"{out} is a mount point, which cannot be replaced as a whole; give a folder in it, "
            f"such as --out {out / 'bundle'}"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / manifest.NAME).is_file()):
        raise BuildError(f"{out} exists and is not a bundle; give --out another name")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        found = manifest.read(out)
    except BundleError as fault:
        raise BuildError(
            f"{out} exists and cannot be read ({fault}), so that nobody knows which files in it are the "
            "bundle's; remove the folder, or give --out another name"
        ) from None
    if strange := next(foreign(out, found), None):
        raise BuildError(
            f"{out} holds {strange}, which no build has made and which would be lost; "
            "move it away, or give --out another name"
        )


def refuse_odd_name(path: Path | str) -> None:
    """Refuse a name that the libraries which read and write graphs cannot be told.

    Raises:
        BuildError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        raise BuildError(f"{shown} is not a name in UTF-8; rename it, or give another one") from None


def foreign(out: Path, found: manifest.Manifest) -> Iterator[str]:
    """The files in a bundle's folder that no build has made, by their paths in it."""
    ours = {manifest.NAME, *found.files}
    for folder, folders, files in os.walk(out):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*links, *files]):
            inside = Path(folder, name).relative_to(out)
            if inside.as_posix() not in ours and not LITTER.fullmatch(name) and not _of_engines(inside):
                yield inside.as_posix()


def _of_engines(inside: Path) -> bool:
    top, *rest = inside.parts
    if top != FOLDER:
        return False
    if rest == [".lock"] or re.fullmatch(rf"\.partial-{RANDOM}", rest[0]):
        return True
    return len(rest) == 2 and bool(ENGINE.fullmatch(rest[0])) and rest[1] in (RECORD, PLAN)


def is_mount(path: Path) -> bool:
    """Whether a file system, or a folder of one, is mounted there."""
    if os.path.ismount(path):
        return True
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    points = (line.split()[4] for line in lines)
    return os.fsencode(path) in {re.sub(rb"\\([0-7]{3})", _octal, point) for point in points}


def _octal(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8)])
