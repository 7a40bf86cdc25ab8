"""Two folders swap their names in one step.

Source: renameat2(2), RENAME_EXCHANGE; Linux 3.15, and ext4, XFS, Btrfs, tmpfs, overlayfs among others.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
UNABLE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""What kernels, file systems and containers say that do not have it."""


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders of one file system.

    Returns:
        False where that cannot be done in one step; both are as they were.

    Raises:
        OSError: any other reason.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # not Linux, or a C library without it
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNABLE:
        return False
    raise OSError(code, os.strerror(code), str(other))
