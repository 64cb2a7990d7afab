"""Files that are whole or not there: written beside their place, brought to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# The end of a temporary name, ``.report.json.1a2b3c4d.tmp``: what a process that was killed leaves.
TEMPORARY = ".tmp"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it.

    Args:
        path: The file; its directory must exist. What was there before is replaced.
        content: Text is written as UTF-8, line ends as they are.

    Raises:
        OSError: As of ``whole_file``.
    """
    with whole_file(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """As ``write_whole`` for content that is written in pieces.

    The pieces go to a temporary file of its own name in the same directory. At the end of the block
    it is brought to the disk and renamed; where the block or a write fails it is removed, and the
    file that was there stays. A link is written through. What is no regular file (``/dev/stdout``,
    a named pipe) cannot be renamed over and is written as it is.

    Args:
        path: The file; its directory must exist.

    Yields:
        The stream to write to.

    Raises:
        OSError: The disk is full, the directory is read-only …; ``filename`` is ``path``.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "engine"
        >>> with whole_file(path) as stream:
        ...     _ = stream.write(b"first ")
        ...     _ = stream.write(b"second")
        >>> path.read_bytes()
        b'first second'
    """
    if _is_special(path):
        with path.open("wb") as stream:
            yield stream
        return
    target = path.resolve() if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}{TEMPORARY}")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # The user knows the file and not its temporary name; a write that fails names neither.
        if not isinstance(error, OSError) or error.errno is None:
            raise
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_to_disk(target.parent)


def sync_to_disk(path: Path) -> None:
    """Bring a file's bytes, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync files and no directories.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
