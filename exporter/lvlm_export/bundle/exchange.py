"""Two directories change places in one step, where the system can do it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
# What a kernel or a file system without the exchange answers.
UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places; at any moment something is at both.

    Source: Linux, renameat2(2), RENAME_EXCHANGE.

    Returns:
        False, and nothing has changed, where C library, kernel or file system have no such step.

    Raises:
        OSError: A path is not there, or may not be renamed; ``filename`` is ``other``.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    if rename(*paths, RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))
