"""Files that are whole or not there: written beside their place, brought to the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from lvlm_profiles.errors import LvlmError

# The end of a temporary name, ``.report.json.1a2b3c4d.lvlm-tmp``: what a process that was killed
# leaves, and what the next one that writes the same file removes.
TEMPORARY = ".lvlm-tmp"
IS_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}")
# Names of a process's open files; what lies behind them is written on and never replaced.
OPEN_FILES = re.compile(r"/dev/(stdout|stderr|fd/.*)|/proc/.*")
# A larger file than any that this program writes for people is not searched for their mark.
SEARCHED_BYTES = 64_000_000


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
    file that was there stays. What a killed process left is removed by the next that writes the
    same file. A link is written through, and rights stay as they were. What is no regular file
    (``/dev/stdout``, a named pipe) cannot be renamed over and is written as it is.

    Args:
        path: The file; its directory must exist.

    Yields:
        The stream to write to.

    Raises:
        OSError: The disk is full, the file or its directory is read-only …; ``filename`` is
            ``path``.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "engine"
        >>> with whole_file(path) as stream:
        ...     _ = stream.write(b"first ")
        ...     _ = stream.write(b"second")
        >>> path.read_bytes()
        b'first second'
    """
    if is_special(path):
        with named_errors(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as sink:
            yield sink
        return
    target = path.resolve() if path.is_symlink() else path
    rights = writable_rights(target)
    remove_abandoned(target.parent, target.name)
    with named_errors(path, target):
        temporary, stream = _open_temporary(target)
        try:
            # Until it has its name the stream is open, and so held: nobody takes it for abandoned.
            with stream:
                yield stream
                stream.flush()
                if rights is not None:
                    os.fchmod(stream.fileno(), rights)
                os.fsync(stream.fileno())
                temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    sync_to_disk(target.parent)


def refuse_other(path: Path, mark: bytes) -> None:
    """Refuse to replace a file of somebody else's: one that is neither empty nor bears our mark.

    Args:
        path: The file, which need not exist. A device or a pipe is nobody's.
        mark: What every file of this kind that this program writes holds.

    Raises:
        LvlmError: It is another's.
        OSError: It is a directory, is read-only or cannot be read.
    """
    if is_special(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return
    if writable_rights(path) is None:
        return
    size = path.stat().st_size
    if size and (size > SEARCHED_BYTES or mark not in path.read_bytes()):
        raise LvlmError(
            f"{path} is there and was not written by this command; move it, or name another file"
        )


@contextlib.contextmanager
def named_errors(path: Path, target: Path | None = None) -> Iterator[None]:
    """Inside, an error of a file without a name, or with a temporary one, is one of ``path``."""
    try:
        yield
    except OSError as error:
        own = error.filename is None or (
            target is not None and IS_TEMPORARY.fullmatch(Path(str(error.filename)).name)
        )
        if error.errno is None or not own:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def hold(stream: IO[bytes], path: Path) -> bool:
    """Lock an open file for as long as it is open, against every other opening of it.

    Between its opening and its locking a file can be removed or replaced, and then its lock keeps
    nobody out: the caller opens it again.

    Args:
        stream: The file.
        path: Where it was opened.

    Returns:
        Whether it is still the file at ``path``.

    Raises:
        BlockingIOError: It is held already.
        OSError: The file system has no locks.
    """
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_abandoned(directory: Path, name: str | None = None) -> None:
    """Remove the temporary files of processes that were killed; what is being written stays.

    Args:
        directory: Where to look; what lies deeper stays.
        name: Only those of this file; None for all.
    """
    pattern = "*" if name is None else glob.escape(name)
    with contextlib.suppress(OSError):
        for path in directory.glob(f".{pattern}.*{TEMPORARY}"):
            if IS_TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                _remove_unheld(path)


def is_special(path: Path) -> bool:
    """It cannot be replaced: a device, a pipe, a directory, or a name of a stream of a process.

    Raises:
        OSError: It cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) or OPEN_FILES.fullmatch(str(path.absolute())) is not None


def writable_rights(target: Path) -> int | None:
    """Rights of a file that is to be replaced, or None where there is none.

    A rename asks for no right to write the file, and root is asked for nothing: a file that is
    marked read-only is refused here.

    Raises:
        PermissionError: It is read-only.
    """
    try:
        rights = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return None
    if not rights & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return rights & 0o777


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


def _open_temporary(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = target.with_name(f".{target.name}.{os.urandom(4).hex()}{TEMPORARY}")
        stream = path.open("xb")
        try:
            if hold(stream, path):
                return path, stream
        except BlockingIOError:
            pass  # found by one that removes what is abandoned, before it was held
        except OSError:
            return path, stream  # without locks nobody removes it either
        stream.close()


def _remove_unheld(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        if hold(stream, path):
            path.unlink()
