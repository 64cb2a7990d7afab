"""What lies where a bundle is to go: nothing, a bundle that may be replaced, or something else.

Only what is recognised is removed. A bundle is recognised by its manifest, and what is part of it by
the manifest's list and by the runtime's table of what may lie beside (``bundle/files.py``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm_profiles.readers import UnreadableError, load_json
from lvlm_runtime.bundle.bundle import MANIFEST, check_files, read_manifest
from lvlm_runtime.bundle.files import entries, has_place
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError

# What a file that a program has open, or the folder that it lies in, answers on NFS.
IN_USE = (errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST)


def present_key(target: Path) -> str | None:
    """Content key of the bundle at ``target``; None where there is nothing, or an empty directory.

    The bundle may be damaged, or of another version.

    Raises:
        LvlmError: Something else lies there.
    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).exists():
        raise LvlmError(f"{target} exists and is not a bundle; choose another --output")
    content = _manifest_content(target)
    if content is None:
        raise LvlmError(
            f"{target / MANIFEST} is no manifest of a bundle; remove {target} if nothing in it is"
            " needed, or choose another --output"
        )
    return str(content["content_key"])


def intact_manifest(target: Path) -> Manifest | None:
    """The manifest of a whole bundle; None where anything in it is missing or not what it was."""
    try:
        manifest = read_manifest(target)
        check_files(target, manifest.files)
    except LvlmError:
        return None
    return manifest


def refuse_foreign(directory: Path) -> None:
    """LvlmError for the first file in a bundle's directory that is not part of the bundle."""
    for path in foreign_files(directory):
        raise LvlmError(
            f"{path} is not part of the bundle there, which is to be replaced; move it away, or choose"
            " another --output"
        )


def foreign_files(directory: Path) -> Iterator[Path]:
    """Files in a bundle's directory that neither its manifest lists nor this program has put there."""
    content = _manifest_content(directory) or {"files": {}}
    for path, mode in entries(directory):
        name = path.relative_to(directory).as_posix()
        if not stat.S_ISDIR(mode) and name not in content["files"] and not has_place(name):
            yield path


def remove_bundle(directory: Path) -> bool:
    """Remove a bundle whose place another has taken; the manifest last, so that it can be resumed.

    Returns:
        Whether nothing is left, as of ``remove_all``.

    Raises:
        LvlmError: It holds a file that is not part of it; nothing was removed.
    """
    if not directory.is_dir() or directory.is_symlink():
        return True
    for path in foreign_files(directory):
        raise LvlmError(
            f"{path} is not part of the bundle that was replaced; move it away and type the same"
            " command again"
        )
    manifest = directory / MANIFEST
    for path, mode in reversed(list(entries(directory))):
        if path != manifest:
            _remove(path, mode)
    if not _needs_manifest(directory):
        _remove(manifest, stat.S_IFREG)
    _remove(directory, stat.S_IFDIR)
    return not directory.exists()


def remove_all(directory: Path) -> bool:
    """Remove a directory of a build and all in it.

    Of a file that another program has open NFS keeps a ``.nfsXXXX`` in its folder until that program
    lets go of it; neither can be removed before, and that is no failure of a build.

    Returns:
        Whether nothing is left.

    Raises:
        OSError: It is a link or a file, or may not be removed.
    """
    if not os.path.lexists(directory):
        return True
    if directory.is_symlink() or not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    for path, mode in reversed(list(entries(directory))):
        _remove(path, mode)
    _remove(directory, stat.S_IFDIR)
    return not directory.exists()


def _remove(path: Path, mode: int) -> None:
    """Remove a file or an empty folder; one that is in use stays."""
    try:
        if stat.S_ISDIR(mode):
            path.rmdir()
        else:
            path.unlink()
    except FileNotFoundError:
        pass  # a program let go of it just now
    except OSError as error:
        if error.errno not in IN_USE:
            raise


def _needs_manifest(directory: Path) -> bool:
    """Something is left that only the manifest tells from a file of somebody else's."""
    return any(
        not stat.S_ISDIR(mode)
        and path != directory / MANIFEST
        and not has_place(path.relative_to(directory).as_posix())
        for path, mode in entries(directory)
    )


def _manifest_content(directory: Path) -> dict[str, Any] | None:
    """The manifest of a bundle of any version, damaged or not; None for any other file."""
    try:
        content = load_json(directory / MANIFEST)
    except (OSError, UnreadableError):
        return None
    kinds = {"schema": int, "content_key": str, "files": dict}
    if not isinstance(content, dict):
        return None
    known = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    return content if known else None
