"""Opening a bundle: read the manifest, check every byte once, hand out what was checked."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_profiles import records
from lvlm_profiles.readers import what_is
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.files import (
    MANIFEST,
    REBUILD,
    STAMP,
    WEIGHTS,
    CheckedFile,
    changed,
    damaged,
    file_sha256,
    is_intact,
    open_checked,
    read_described,
    read_listed,
    refuse_unlisted,
)
from lvlm_runtime.bundle.manifest import (
    SCHEMA,
    Budget,
    FileRef,
    Manifest,
    TensorRef,
    to_json,
)
from lvlm_runtime.bundle.rules import check_manifest
from lvlm_runtime.bundle.signature import PublicKey, read_public_key
from lvlm_runtime.bundle.stamp import Stamp
from lvlm_runtime.errors import LvlmError, UsageError

__all__ = [
    "MANIFEST",
    "REBUILD",
    "STAMP",
    "TOKENIZER",
    "WEIGHTS",
    "Bundle",
    "TokenTable",
    "file_sha256",
]

TOKENIZER = "tokenizer"
GRAPH = ".onnx"
# Entry of the manifest that holds the SHA-256 of the others.
DIGEST = "sha256"


class TokenTable:
    """The token table ``[vocab, C]`` in the weight file, read row by row.

    Read and not mapped: where somebody cuts the file off, a map ends the process.

    Args:
        weights: The open weight file.
        ref: Where the table lies in it.
        scales: What its rows are multiplied by where they are integers, ``[vocab]``.
        factor: What all of them are multiplied by.
    """

    def __init__(
        self, weights: CheckedFile, ref: TensorRef, scales: TensorRef | None, factor: float = 1.0
    ) -> None:
        self.shape = ref.shape
        self.dtype = numpy_dtype((ref if scales is None else scales).dtype)
        self._weights = weights
        self._stored = numpy_dtype(ref.dtype)
        self._offset = ref.offset
        self._row = ref.size_bytes // ref.shape[0]
        self._scales = scales
        self._factor = factor

    def rows(self, token_ids: Sequence[int]) -> NDArray[Any]:
        """Rows of some tokens, ``[n, C]``.

        Raises:
            LvlmError: The file was cut off since the bundle was opened.
            IndexError: A token that the table has no row for.
        """
        found = np.empty((len(token_ids), *self.shape[1:]), self.dtype)
        for row, token in zip(found, token_ids, strict=True):
            if not 0 <= token < self.shape[0]:
                raise IndexError(f"token {token} is not in a table of {self.shape[0]}")
            data = self._weights.read(self._row, self._offset + token * self._row)
            row[...] = np.frombuffer(data, np.uint8).view(self._stored)
            if self._scales is not None:
                width = self.dtype.itemsize
                data = self._weights.read(width, self._scales.offset + token * width)
                row *= np.frombuffer(data, np.uint8).view(self.dtype)
        if self._factor != 1:
            found *= self.dtype.type(self._factor)
        return found


@dataclass(frozen=True)
class Bundle:
    """A bundle directory that was found intact.

    Graphs are in memory as they were checked, and the weight file is open: a build that replaces
    the bundle does not change one that is open.

    Attributes:
        directory: Where it lies.
        manifest: What it holds.
        key: Whose signature the manifest was found to have; None where none was asked for.
    """

    directory: Path
    manifest: Manifest
    key: PublicKey | None = None
    _graphs: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)
    _weights: list[CheckedFile] = field(default_factory=list, repr=False, compare=False)
    _state: list[int] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        full: bool = False,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Bundle:
        """Read and check a bundle.

        Every file is compared with its SHA-256 in the manifest. A weight file of which the stamp
        says that it is intact is not hashed again.

        Args:
            directory: The bundle.
            full: Hash the weight file whatever the stamp says.
            require_signature: Public key of minisign, a file or its line of base64: the manifest's
                signature is verified before anything of it is read, and the stamp is not believed.

        Raises:
            LvlmError: Not a bundle, a manifest that contradicts itself, a missing file, a changed byte,
                a file that is not listed.
        """
        path = Path(directory)
        key = None if require_signature is None else read_public_key(require_signature)
        bundle = cls(path, read_manifest(path, key), key)
        check_manifest(bundle.manifest, bundle.path(MANIFEST))
        files = bundle.manifest.files
        refuse_unlisted(path, files)
        for name, ref in files.items():
            if name.endswith(GRAPH):
                bundle.graph(name)
            else:
                held = bundle.weights if name == WEIGHTS else open_checked(path, name, ref)
                _check(held, name, ref, Stamp(path, not full and key is None))
        return bundle

    def path(self, name: str) -> Path:
        """A file of the bundle; for messages, and for what reads it by name."""
        return self.directory / name

    def read(self, name: str) -> bytes:
        """A file that the manifest lists, checked while it is read; errors as of ``read_listed``."""
        return read_listed(self.directory, self.manifest.files, name)

    def graph(self, name: str) -> bytes:
        """A graph's file as it was when the bundle was opened."""
        if name not in self._graphs:
            self._graphs[name] = self.read(name)
        return self._graphs[name]

    def tokenizer_files(self) -> dict[str, bytes]:
        """What the manifest lists of the tokenizer's folder: name in it -> content."""
        start = f"{TOKENIZER}/"
        listed = [name for name in self.manifest.files if name.startswith(start)]
        return {name.removeprefix(start): self.read(name) for name in listed}

    @property
    def weights(self) -> CheckedFile:
        """The open weight file."""
        if not self._weights:
            self._weights.append(
                open_checked(self.directory, WEIGHTS, self.manifest.files[WEIGHTS])
            )
            self._state[:] = self._weights[0].state()
        return self._weights[0]

    def check_unchanged(self) -> None:
        """Refuse to go on when the weight file was written to since the bundle was opened.

        Backends map it, and a map ends the process where the file was cut off. Asked before every
        graph call it leaves a moment in which that can still happen, and no wrong answer after it.

        Raises:
            LvlmError: Its bytes are others.
        """
        held, now = self.weights, self.weights.state()
        if now == self._state:
            return
        ref = self.manifest.files[WEIGHTS]
        # Its name or its rights may have changed, or it was removed and lives on here.
        if held.status().st_size != ref.size_bytes or not is_intact(held, ref):
            raise changed(held.path)
        self._state[:] = now

    def check_place(self) -> None:
        """Refuse when the weight file's name leads to another file than the one that was checked.

        Backends open it by its name.

        Raises:
            LvlmError: The bundle was replaced since it was opened.
        """
        ours = self.weights.status()
        try:
            same = os.path.samestat(os.stat(self.path(WEIGHTS)), ours)  # noqa: PTH116
        except OSError:
            same = False
        if not same:
            raise changed(self.path(WEIGHTS))

    def embedding_table(self) -> TokenTable:
        """The token table ``[vocab, C]``."""
        text = self.manifest.text
        return TokenTable(self.weights, text.embed_tokens, text.embed_scales, text.embed_scale)

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
            f"ratio {ratio:g} is not in this bundle; it has {known}; add it with `lvlm-export build -o"
            f" {shlex.quote(str(self.directory))} --add-ratio {ratio:g}`"
        )


def read_manifest(directory: Path, key: PublicKey | None = None) -> Manifest:
    """Parse manifest.json; LvlmError says what is wrong with it, or with the signature of a key."""
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
    content = read_described(path, key, REBUILD)
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
    for name, ref in files.items():
        _check(open_checked(directory, name, ref), name, ref, Stamp(directory))


def _check(held: CheckedFile, name: str, ref: FileRef, stamp: Stamp) -> None:
    """LvlmError for a damaged file; only the weights are large enough for the stamp to matter."""
    if not (stamp.vouches(name, held, ref) if name == WEIGHTS else is_intact(held, ref)):
        raise damaged(held.path)
