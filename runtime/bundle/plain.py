"""Text of files that others wrote: plain files of a bounded size, inside their folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

LIMIT = 64 << 20
"""Bytes: a manifest, an engine's record and a calibration of the largest models have less than one MiB."""


def text(path: Path, root: Path | None = None, limit: int = LIMIT) -> str:
    """The UTF-8 text of a file.

    Args:
        path: of the file.
        root: a folder that it may not leave through links; None: it may lie anywhere.
        limit: bytes that it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: no plain file (a pipe or a device would be read without an end), too large, outside of
            `root`, or no UTF-8 (UnicodeDecodeError).
    """
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise ValueError("it leaves its folder")
    # A pipe is opened without waiting for its writer, and then refused.
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no plain file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return data.decode("utf-8")
