"""The files of a bundle under construction, and the journal of what is finished of them.

A build that dies leaves both behind. The next build with the same content key goes on from the
journal; one with another key starts over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lvlm_export.bundle.present import remove_all
from lvlm_profiles import records
from lvlm_profiles.files import remove_abandoned, sync_to_disk, write_whole
from lvlm_runtime.bundle.bundle import WEIGHTS, file_sha256
from lvlm_runtime.bundle.manifest import FileRef, TensorRef


@dataclass(frozen=True)
class Journal:
    """What is finished, for a build that goes on where another stopped.

    Attributes:
        key: Content key of the build.
        done: Finished graphs and what their files are.
        tensors: What ``weights.bin`` holds, by SHA-256.
        manifest: SHA-256 of the manifest once the bundle is whole and about to be published. From
            then on the directory may hold what the bundle has replaced.
    """

    key: str
    done: dict[str, FileRef]
    tensors: dict[str, TensorRef]
    manifest: str | None


@dataclass
class Workspace:
    """A directory for the bundle's files and nothing else, with its journal beside it.

    Attributes:
        directory: Where the files are written.
        journal: File of the journal.
        key: Content key of this build.
        done: Finished graphs and what their files are.
        tensors: What ``weights.bin`` holds, by SHA-256.
        manifest: As in ``Journal``.
    """

    directory: Path
    journal: Path
    key: str
    done: dict[str, FileRef] = field(default_factory=dict)
    tensors: dict[str, TensorRef] = field(default_factory=dict)
    manifest: str | None = None

    def path(self, name: str) -> Path:
        """A file under construction."""
        return self.directory / name

    def is_done(self, name: str) -> bool:
        """An earlier run finished this file, and it is still what it was."""
        ref = self.done.get(name)
        path = self.path(name)
        return ref is not None and path.exists() and file_sha256(path) == ref.sha256

    def finish(self, name: str, tensors: dict[str, TensorRef]) -> None:
        """Note a finished graph together with the weights it brought."""
        self.done[name] = file_ref(self.path(name))
        sync_to_disk(self.path(name))
        self.note_weights(tensors)

    def note_weights(self, tensors: dict[str, TensorRef]) -> None:
        """Note what the weight file holds."""
        # What is noted must be there after a power cut, too: the journal is on the disk at once.
        if self.path(WEIGHTS).exists():
            sync_to_disk(self.path(WEIGHTS))
        self.tensors = dict(tensors)
        self.note()

    def note(self) -> None:
        """Write the journal."""
        journal = Journal(self.key, self.done, self.tensors, self.manifest)
        write_whole(self.journal, json.dumps(asdict(journal)))

    def resume(self, remedy: str) -> None:
        """Go on from the journal, or start over where there is none of this build.

        Args:
            remedy: What to do about a damaged journal.

        Raises:
            LvlmError: The journal is damaged.
        """
        noted = self._noted(remedy)
        if noted is not None:
            self.done, self.tensors = dict(noted.done), dict(noted.tensors)
            self.manifest = noted.manifest
            # What a run that was killed left of a file that it was writing.
            remove_abandoned(self.directory)
            return
        # The journal first: while files go, it must not say that they are finished.
        self.note()
        remove_all(self.directory)
        self.directory.mkdir(exist_ok=True)

    def discard(self) -> bool:
        """Remove files and, where nothing of them is in use and left, journal; was it so?"""
        gone = remove_all(self.directory)
        if gone:
            self.journal.unlink(missing_ok=True)
        return gone

    def _noted(self, remedy: str) -> Journal | None:
        """What an earlier run of this build noted, if what it is about is still there."""
        try:
            content = records.read_json(self.journal, remedy)
        except FileNotFoundError:
            return None
        # A build of something else may be of another version too, with a journal that looks otherwise.
        if isinstance(content, dict) and content.get("key", self.key) != self.key:
            return None
        noted = records.read(Journal, content, self.journal, remedy)
        end = max((ref.offset + ref.size_bytes for ref in noted.tensors.values()), default=0)
        weights = self.path(WEIGHTS)
        there = weights.stat().st_size if weights.exists() else 0
        return noted if (noted.done or noted.tensors or noted.manifest) and there >= end else None


def file_ref(path: Path, on_bytes: Callable[[int], None] | None = None) -> FileRef:
    """Size and SHA-256 of a file."""
    return FileRef(path.stat().st_size, file_sha256(path, on_bytes))
