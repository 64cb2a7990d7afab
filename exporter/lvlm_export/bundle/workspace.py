"""A bundle under construction: a directory beside the target that becomes it in one rename.

A build that dies leaves ``<bundle>.building`` behind, which nothing takes for a bundle. The next
build with the same content key goes on from its journal; one with another key starts over. Two
builds of one bundle at a time would write into each other's files, so the second is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lvlm_profiles import records
from lvlm_profiles.files import TEMPORARY, sync_to_disk, write_whole
from lvlm_runtime.bundle.bundle import MANIFEST, WEIGHTS, file_sha256, manifest_text, read_manifest
from lvlm_runtime.bundle.manifest import FileRef, Manifest, TensorRef
from lvlm_runtime.errors import LvlmError

JOURNAL = "journal.json"
LOCK = "build.lock"


@dataclass(frozen=True)
class Journal:
    """What is finished, for a build that goes on where another stopped.

    Attributes:
        key: Content key of the build.
        done: Finished graphs and what their files are.
        tensors: What ``weights.bin`` holds, by SHA-256.
    """

    key: str
    done: dict[str, FileRef]
    tensors: dict[str, TensorRef]


@dataclass
class Workspace:
    """The directory and what is already done in it.

    Attributes:
        directory: ``<bundle>.building``.
        target: Where the bundle goes.
        key: Content key of this build.
        done: Finished graphs and what their files are.
        tensors: What ``weights.bin`` holds, by SHA-256.
    """

    directory: Path
    target: Path
    key: str
    done: dict[str, FileRef] = field(default_factory=dict)
    tensors: dict[str, TensorRef] = field(default_factory=dict)

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
        self.note_weights(tensors)

    def note_weights(self, tensors: dict[str, TensorRef]) -> None:
        """Note what the weight file holds."""
        self.tensors = dict(tensors)
        journal = Journal(self.key, self.done, self.tensors)
        write_whole(self.path(JOURNAL), json.dumps(asdict(journal)))

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest and become the bundle; an older bundle there is replaced."""
        for name in (JOURNAL, LOCK):
            self.path(name).unlink(missing_ok=True)
        write_whole(self.path(MANIFEST), manifest_text(manifest))
        for path in (*self.directory.rglob("*"), self.directory):
            sync_to_disk(path)
        old = self.target.with_name(self.target.name + ".old")
        if self.target.exists():
            self.target.rename(old)
        self.directory.rename(self.target)
        shutil.rmtree(old, ignore_errors=True)


def existing_bundle(target: Path) -> Manifest | None:
    """The manifest of a bundle that already lies at ``target``; None where there is nothing.

    Raises:
        LvlmError: Something else lies there.
    """
    if not target.exists():
        return None
    if target.is_dir() and not any(target.iterdir()):
        return None
    if not (target / MANIFEST).exists():
        raise LvlmError(f"{target} exists and is not a bundle; choose another --output")
    with contextlib.suppress(LvlmError):
        return read_manifest(target)
    return None


@contextlib.contextmanager
def open_workspace(target: Path, key: str) -> Iterator[Workspace]:
    """Start or resume the construction of ``target``; nobody else can meanwhile.

    Raises:
        LvlmError: Another build is at it, or something else is in the way.
    """
    directory = target.with_name(target.name + ".building")
    if directory.exists():
        _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        workspace = Workspace(directory, target, key)
        journal = _read_journal(directory, key)
        if journal is None:
            _clear(directory)
        else:
            workspace.done, workspace.tensors = dict(journal.done), dict(journal.tensors)
            # What a run that was killed left of a file that it was writing.
            for path in directory.glob(f".*{TEMPORARY}"):
                path.unlink()
        yield workspace


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; a process that dies lets go of it."""
    with (directory / LOCK).open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LvlmError(
                f"another build is writing {directory}; wait for it, or choose another --output"
            ) from None
        yield


def _clear(directory: Path) -> None:
    """Remove what a build of something else left, but for the lock that is held."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _refuse_foreign(directory: Path) -> None:
    """LvlmError for a directory that no build of ours left behind: it must not be deleted."""
    ours = (JOURNAL, MANIFEST, WEIGHTS, LOCK)
    if any(directory.iterdir()) and not any((directory / name).exists() for name in ours):
        raise LvlmError(
            f"{directory} is in the way and holds something else; move it, or choose another --output"
        )


def file_ref(path: Path, on_bytes: Callable[[int], None] | None = None) -> FileRef:
    """Size and SHA-256 of a file."""
    return FileRef(path.stat().st_size, file_sha256(path, on_bytes))


def _read_journal(directory: Path, key: str) -> Journal | None:
    """What an earlier run of this build noted; None where there was none, or one of another build.

    Raises:
        LvlmError: The journal is damaged.
    """
    path, remedy = directory / JOURNAL, f"remove {directory} and build the bundle again"
    try:
        content = records.read_json(path, remedy)
    except FileNotFoundError:
        return None
    # A build of something else may be of another version too, with a journal that looks otherwise.
    if isinstance(content, dict) and content.get("key", key) != key:
        return None
    return records.read(Journal, content, path, remedy)
