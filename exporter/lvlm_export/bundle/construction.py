"""The directory of a build beside its bundle, held by one process, so that no kill loses anything.

Beside the target ``<bundle>`` lies ``<bundle>.lvlm-building`` while a build is at work, and after
one that was killed:

- ``lock`` is held from the first look at the target until after the last removal, so that two
  builds never meet;
- ``journal.json`` says what is finished and, by being there, that the directory is a build's;
- ``bundle/`` holds the files of the bundle and is what becomes it;
- ``float32/`` with ``float32.json`` holds the stand-in of ``Construction.twin``;
- ``replaced/`` is the old bundle between two renames, where the file system cannot exchange;
  ``replaced.XXXXXXXX/`` as well, where NFS keeps files of an older one that a program has open.

The bundle is whole, on the disk and noted as such before anything at the target changes. Then one
step puts it there: a rename where there was nothing, an exchange where an older bundle is replaced.
Where the file system has no exchange, the old bundle is set aside for the moment between two
renames; the next build brings it back first. What is removed was recognised before: see ``present``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lvlm_export.bundle.exchange import exchange
from lvlm_export.bundle.present import (
    foreign_files,
    intact_manifest,
    present_key,
    refuse_foreign,
    remove_bundle,
)
from lvlm_export.bundle.workspace import Workspace
from lvlm_profiles import records
from lvlm_profiles.files import (
    IS_TEMPORARY,
    hold,
    remove_abandoned,
    sync_to_disk,
    write_whole,
)
from lvlm_runtime.bundle.bundle import MANIFEST, file_sha256, manifest_text, read_manifest
from lvlm_runtime.bundle.files import entries
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError

SUFFIX = ".lvlm-building"
LOCK, JOURNAL, BUNDLE, TWIN, REPLACED = "lock", "journal.json", "bundle", "float32", "replaced"


@dataclass
class Construction:
    """The directory of a build, held by this process.

    Attributes:
        target: Where the bundle goes; no link.
        directory: ``<bundle>.lvlm-building``.
    """

    target: Path
    directory: Path

    @property
    def key(self) -> str | None:
        """Content key of the build that the journal is of; None where there is no journal."""
        return self._noted("key")

    @property
    def remedy(self) -> str:
        """What to do about a damaged journal."""
        return f"remove {self.directory} and build the bundle again"

    def workspace(self, key: str) -> Workspace:
        """Start the bundle of this key, or go on with it."""
        workspace = Workspace(self.directory / BUNDLE, self.directory / JOURNAL, key)
        if self._noted("manifest") is not None and not self._is_whole(key):
            # It holds what was replaced, or is damaged; another build's is of no use here.
            self._remove_bundles()
        workspace.resume(self.remedy)
        return workspace

    def twin(self, key: str) -> Workspace:
        """A second workspace, for a stand-in that is not published."""
        workspace = Workspace(self.directory / TWIN, self._journal(TWIN), key)
        workspace.resume(self.remedy)
        return workspace

    def publish(self, workspace: Workspace, manifest: Manifest) -> None:
        """Write the manifest and put the bundle at its place; an older bundle there is replaced.

        Raises:
            LvlmError: A file that is not the bundle's lies in the old or the new one.
        """
        remove_abandoned(workspace.directory)
        text = manifest_text(manifest)
        write_whole(workspace.path(MANIFEST), text)
        for path in foreign_files(workspace.directory):
            raise LvlmError(f"{path} is not part of the bundle; move it away and build again")
        for path, _ in entries(workspace.directory):
            sync_to_disk(path)
        sync_to_disk(workspace.directory)
        workspace.manifest = hashlib.sha256(text.encode()).hexdigest()
        workspace.note()
        self._put(workspace.directory)
        self.clear()

    def clear(self) -> None:
        """Remove all that a build needed, the journal last: it stays with what is in use and left."""
        gone = self._noted("manifest") is None or self._remove_bundles()
        gone = Workspace(self.directory / TWIN, self._journal(TWIN), "").discard() and gone
        if gone:
            Workspace(self.directory / BUNDLE, self.directory / JOURNAL, "").discard()

    @property
    def is_left(self) -> bool:
        """Only what a program has open of a replaced bundle lies here; the next build removes it."""
        places = [path for path in (self.directory / BUNDLE, *self._set_aside()) if path.exists()]
        whole = any((path / MANIFEST).exists() for path in places)
        return self._noted("manifest") is not None and bool(places) and not whole

    def _put(self, built: Path) -> None:
        """Let the target be what was built."""
        target, replaced = self.target, self.directory / REPLACED
        try:
            if present_key(target) is None:
                built.rename(target)  # an empty directory is renamed over, anything else refused
            else:
                refuse_foreign(target)
                if not exchange(built, target):
                    if not remove_bundle(replaced):  # in use and left: another name is free
                        replaced = replaced.with_name(f"{REPLACED}.{os.urandom(4).hex()}")
                    target.rename(replaced)
                    self._sync()
                    built.rename(target)
        except OSError as error:
            # The user knows the target; a rename names the file that it moves.
            raise OSError(error.errno, error.strerror, str(target)) from error
        self._sync()

    def _sync(self) -> None:
        for directory in (self.directory, self.target.parent):
            sync_to_disk(directory)

    def bring_back(self) -> None:
        """A bundle that was set aside, by a build that was killed before the new one came."""
        for replaced in self._set_aside():
            if (replaced / MANIFEST).exists() and not os.path.lexists(self.target):
                replaced.rename(self.target)
                self._sync()

    def _set_aside(self) -> list[Path]:
        name = re.compile(rf"{REPLACED}(\.[0-9a-f]{{8}})?")
        return [path for path in sorted(self.directory.iterdir()) if name.fullmatch(path.name)]

    def _remove_bundles(self) -> bool:
        """Whether nothing of them is left."""
        gone = [remove_bundle(path) for path in (self.directory / BUNDLE, *self._set_aside())]
        return all(gone)

    def _journal(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def whole_manifest(self, key: str) -> Manifest | None:
        """The manifest of a bundle of this key that only waits to be published."""
        path = self.directory / BUNDLE / MANIFEST
        if self._noted("manifest") is None or not self._is_whole(key):
            return None
        return read_manifest(path.parent)

    def _is_whole(self, key: str) -> bool:
        directory = self.directory / BUNDLE
        path = directory / MANIFEST
        if not path.exists() or file_sha256(path) != self._noted("manifest"):
            return False
        manifest = intact_manifest(directory)
        return manifest is not None and manifest.content_key == key

    def _noted(self, entry: str) -> str | None:
        """An entry of the journal, of a build of whatever key and version."""
        try:
            content = records.read_json(self.directory / JOURNAL, self.remedy)
        except FileNotFoundError:
            return None
        value = content.get(entry) if isinstance(content, dict) else None
        return value if isinstance(value, str) else None


def directory_of(target: Path) -> Path:
    """Where the build of a bundle is at work."""
    return target.with_name(target.name + SUFFIX)


@contextlib.contextmanager
def open_construction(target: Path) -> Iterator[Construction]:
    """Hold a build's directory; where it holds nothing to go on with, it goes at the end.

    Raises:
        LvlmError: Another build is at it, or something else is in the way.
    """
    construction = Construction(target, directory_of(target))
    lock = _lock(construction)
    try:
        remove_abandoned(construction.directory)
        construction.bring_back()
        yield construction
    finally:
        if not (construction.directory / JOURNAL).exists():
            (construction.directory / LOCK).unlink(missing_ok=True)
            # Not empty: somebody's file, or already the lock of the next build.
            with contextlib.suppress(OSError):
                construction.directory.rmdir()
        lock.close()


def _lock(construction: Construction) -> BinaryIO:
    """Hold the directory's lock; a process that dies lets go of it."""
    directory = construction.directory
    while True:
        _refuse_other(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = (directory / LOCK).open("ab")
        except FileNotFoundError:
            continue  # a build that ended has just removed the directory
        try:
            if hold(lock, directory / LOCK):
                return lock
        except BlockingIOError:
            lock.close()
            raise LvlmError(
                f"another build is writing {construction.target}; wait for it, or choose another"
                " --output"
            ) from None
        lock.close()


def _refuse_other(directory: Path) -> None:
    """LvlmError for what has the name of a build's directory and is none."""
    if not os.path.lexists(directory):
        return
    names = {each.name for each in directory.iterdir()} if _is_directory(directory) else {""}
    if JOURNAL in names or all(n == LOCK or IS_TEMPORARY.fullmatch(n) for n in names):
        return
    raise LvlmError(
        f"{directory} is in the way and is no unfinished build; move it, or choose another --output"
    )


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
