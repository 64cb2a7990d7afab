"""The bundle of a key at its place: what is there already, what was finished before, or a new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from lvlm_export.bundle.construction import SUFFIX, Construction, directory_of, open_construction
from lvlm_export.bundle.present import intact_manifest, present_key, refuse_foreign
from lvlm_export.bundle.workspace import Workspace
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError, UsageError


def make_bundle(
    output: Path,
    key: str,
    make: Callable[[Construction, Workspace], Manifest],
    force: bool = False,
    complete: Callable[[Manifest], bool] = lambda _manifest: True,
) -> tuple[Manifest, bool]:
    """The bundle of a key at its place: the one that is there, or a new one.

    Args:
        output: Where it goes; of a link, what it points at is replaced.
        key: Content key.
        make: Writes the bundle's files into the workspace and says what they are.
        force: Replace a bundle of another key.
        complete: Whether a bundle that an earlier run finished and did not publish is enough.

    Returns:
        The manifest, and whether the bundle was there already and nothing was done.

    Raises:
        LvlmError: Something is in the way; nothing of it was changed.
    """
    target = real_target(output)
    if not os.path.lexists(directory_of(target)):
        manifest = _reusable(target, output, key, force)
        if manifest is not None:
            return manifest, True
    with open_construction(target) as construction:
        # Another build may have ended between the look and the lock.
        manifest = _reusable(target, output, key, force)
        if manifest is not None:
            if construction.key == key:
                construction.clear()
            return manifest, True
        workspace = construction.workspace(key)
        manifest = construction.whole_manifest(key)
        if manifest is None or not complete(manifest):
            if workspace.manifest is not None:
                workspace.manifest = None
                workspace.note()
            try:
                manifest = make(construction, workspace)
            except BaseException:
                if not workspace.done:
                    with contextlib.suppress(OSError):  # what failed before says more
                        construction.clear()
                raise
        construction.publish(workspace, manifest)
    return manifest, False


def real_target(output: Path) -> Path:
    """The directory that is replaced: what ``output`` points at, through all links.

    Raises:
        UsageError: It has the name of a build's directory.
    """
    target = Path(os.path.realpath(output))
    if target.name.endswith(SUFFIX):
        raise UsageError(f"{output} has the name of an unfinished build; choose another --output")
    return target


def left_behind(output: Path) -> Path | None:
    """The build's directory where a program has files of the replaced bundle open, and NFS keeps them."""
    target = real_target(output)
    directory = directory_of(target)
    return directory if directory.is_dir() and Construction(target, directory).is_left else None


def _reusable(target: Path, output: Path, key: str, force: bool) -> Manifest | None:
    """The manifest of a whole bundle of this key; None where one is to be built.

    Raises:
        LvlmError: What lies there is not to be replaced.
    """
    present = present_key(target)
    if present == key:
        manifest = intact_manifest(target)
        if manifest is not None:
            return manifest
    if target.is_mount():
        raise LvlmError(f"{output} is a mount point and cannot be replaced; name a directory in it")
    if present is not None:
        if present != key and not force:
            raise LvlmError(
                f"{output} holds a bundle of other options or another checkpoint; --add-ratio and"
                " --remove-ratio change its ratios; give --force to replace it, or another --output"
            )
        refuse_foreign(target)
    return None
