"""What lies where a bundle is to go: nothing, a bundle that may be replaced, or something else.

Only what is recognised is removed. A bundle is recognised by its manifest, and what is part of it by
the manifest's list and by the runtime's table of what may lie beside (``bundle/files.py``).
"""

from __future__ import annotations

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


def remove_bundle(directory: Path) -> None:
    """Remove a bundle whose place another has taken; the manifest last, so that it can be resumed.

    Raises:
        LvlmError: It holds a file that is not part of it; nothing was removed.
    """
    if not directory.is_dir() or directory.is_symlink():
        return
    for path in foreign_files(directory):
        raise LvlmError(
            f"{path} is not part of the bundle that was replaced; move it away and type the same"
            " command again"
        )
    for path, mode in reversed(list(entries(directory))):
        if stat.S_ISDIR(mode):
            path.rmdir()
        elif path != directory / MANIFEST:
            path.unlink()
    (directory / MANIFEST).unlink(missing_ok=True)
    directory.rmdir()


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
