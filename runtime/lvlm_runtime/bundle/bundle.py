"""Opening a bundle: read the manifest, check every byte once, hand out files and tables."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_profiles import records
from lvlm_profiles.files import write_whole
from lvlm_profiles.readers import load_json, what_is
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.manifest import SCHEMA, Budget, FileRef, Manifest, to_json
from lvlm_runtime.errors import LvlmError, UsageError

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
TOKENIZER = "tokenizer"
# Sizes and times of the files when they were last found intact; beside them, if writable.
STAMP = ".verified.json"
# Entry of the manifest that holds the SHA-256 of the others.
DIGEST = "sha256"
REBUILD = "copy the bundle again or build it again"


@dataclass(frozen=True)
class Bundle:
    """A bundle directory that was found intact.

    Attributes:
        directory: Where it lies.
        manifest: What it holds.
    """

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle.

        Every file is compared with its SHA-256 in the manifest. Files that have kept size and
        modification time since they were last found intact are not hashed again.

        Raises:
            LvlmError: Not a bundle, a missing file, a changed byte.
        """
        path = Path(directory)
        manifest = read_manifest(path)
        check_files(path, manifest.files)
        return cls(path, manifest)

    def path(self, name: str) -> Path:
        """A file of the bundle."""
        return self.directory / name

    def embedding_table(self) -> NDArray[Any]:
        """The token table ``[vocab, C]``, memory-mapped."""
        ref = self.manifest.text.embed_tokens
        return np.memmap(self.path(WEIGHTS), numpy_dtype(ref.dtype), "r", ref.offset, ref.shape)

    def budget(self, ratio: float | None) -> Budget:
        """The budget of a ratio; the bundle's first for None.

        Raises:
            UsageError: The bundle has no such ratio; names those it has.
        """
        budgets = self.manifest.budgets
        if ratio is None:
            return budgets[0]
        for budget in budgets:
            if abs(budget.ratio - ratio) < 1e-9:
                return budget
        known = ", ".join(f"{budget.ratio:g}" for budget in budgets)
        raise UsageError(
            f"ratio {ratio:g} is not in this bundle; it has {known}; build it with"
            f" `lvlm-export build --ratio {ratio:g}`"
        )


def read_manifest(directory: Path) -> Manifest:
    """Parse manifest.json; LvlmError says what is wrong with it."""
    path = directory / MANIFEST
    if not directory.is_dir():
        if directory.exists():
            raise LvlmError(
                f"{directory} is {what_is(directory)}; give a bundle, the directory that"
                " `lvlm-export build` writes"
            )
        raise LvlmError(f"no bundle at {directory}: no such directory")
    if not path.exists():
        raise LvlmError(
            f"{directory} is not a bundle: it is {what_is(directory)} and has no {MANIFEST}; build one"
            " with `lvlm-export build`"
        )
    content = records.read_json(path, REBUILD)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise LvlmError(
            f"{path} has schema {schema!r} and this version reads {SCHEMA}; build the bundle again"
        )
    if content.pop(DIGEST, None) != _digest(content):
        raise LvlmError(f"{path} is damaged: its SHA-256 is not its own; {REBUILD}")
    return records.read(Manifest, content, path, REBUILD)


def manifest_text(manifest: Manifest) -> str:
    """What ``read_manifest`` reads: JSON that carries its own SHA-256, so a flipped digit shows."""
    content = to_json(manifest)
    return json.dumps({DIGEST: _digest(content), **content}, indent=1)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_files(directory: Path, files: dict[str, FileRef]) -> None:
    """Compare files with the manifest; LvlmError names the first that differs."""
    stamp = _read_stamp(directory)
    found: dict[str, list[Any]] = {}
    for name, ref in files.items():
        path = directory / name
        try:
            status = path.stat()
        except OSError:
            raise LvlmError(f"{directory} lacks {name}; {REBUILD}") from None
        if status.st_size != ref.size_bytes:
            raise LvlmError(
                f"{path} has {status.st_size} bytes instead of {ref.size_bytes}; {REBUILD}"
            )
        found[name] = [status.st_size, status.st_mtime_ns, status.st_ino, ref.sha256]
        if stamp.get(name) != found[name] and file_sha256(path) != ref.sha256:
            raise LvlmError(f"{path} is damaged: its SHA-256 is not the manifest's; {REBUILD}")
    if stamp != found:
        _write_stamp(directory, found)


def file_sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in pieces; ``on_bytes`` is called with each piece's length."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return digest.hexdigest()


def _read_stamp(directory: Path) -> dict[str, Any]:
    try:
        content = load_json(directory / STAMP)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_stamp(directory: Path, found: dict[str, list[Any]]) -> None:
    # A read-only medium keeps no stamp and hashes at every opening: slower, never wrong.
    with contextlib.suppress(OSError):
        write_whole(directory / STAMP, json.dumps(found))
