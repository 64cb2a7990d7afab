"""The files of a bundle: which there may be, and how they are read.

A bundle is read by its manifest, never by directory: what no hash covers is not used, and what lies
there without a place in the table below is refused by name. What is used is what was checked: a file
is hashed while it is read, and the weight file, too large for that, stays open.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_profiles import records
from lvlm_profiles.files import IS_TEMPORARY
from lvlm_runtime.bundle.manifest import FileRef
from lvlm_runtime.bundle.signature import SUFFIX, PublicKey, verify_signature
from lvlm_runtime.errors import LvlmError

MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"
STAMP = ".verified.json"
SIGNATURE = MANIFEST + SUFFIX
REBUILD = "copy the bundle again or build it again"
# What may lie in a bundle beside the files that its manifest lists, and who checks it.
BESIDE = {
    re.escape(MANIFEST): "carries its own SHA-256",
    re.escape(SIGNATURE): "signs the manifest, where somebody signed it",
    re.escape(STAMP): "a cache: which bytes were found intact when",
    r"engines/(rtx|trt)/record\.json": "what the engines are, with their hashes",
    r"engines/(rtx|trt)/record\.json\.minisig": "signs that, where somebody signed it",
    r"engines/(rtx|trt)/[^/]+\.engine": "hashed against the record when it is loaded",
    r"engines/(rtx|trt)/(timing|kernels)\.cache": "TensorRT's own; it refuses what is not its own",
    rf"engines/(rtx|trt)/{re.escape(STAMP)}": "as above, for the engines",
    # What a process that was killed left of a file that it was writing; nothing reads it.
    rf"(.*/)?{IS_TEMPORARY.pattern}": "nothing",
    # What NFS keeps of a file that was removed while a program has it open; nothing reads it by name.
    r"(.*/)?\.nfs[0-9a-f]+": "nothing",
}
# Of what is read as a whole. Graphs have some kilobytes, a manifest of a thousand tensors half a
# megabyte, the largest tokenizers some tens.
MOST_BYTES = 64 << 20
_PIECE = 1 << 22


class CheckedFile:
    """A file that stays open, so that it is the same whatever happens to its name.

    Args:
        path: The file; only a regular one.

    Attributes:
        path: As given.
        descriptor: Of the open file.

    Raises:
        OSError: It cannot be opened.
        LvlmError: It is a directory, a pipe …
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A pipe would wait for a writer.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.descriptor)
        if not stat.S_ISREG(self.status().st_mode):
            self.close()
            raise LvlmError(f"{path} is not a regular file; {REBUILD}")

    def status(self) -> os.stat_result:
        """Size, times and number of the open file."""
        return os.fstat(self.descriptor)

    def state(self) -> list[int]:
        """What changes when the bytes do; the last cannot be set back by a program."""
        now = self.status()
        return [now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns]

    def pieces(self, most: int) -> Iterator[bytes]:
        """The bytes up to a length, some megabytes at a time; a map would die where they end."""
        at = 0
        while at < most and (piece := os.pread(self.descriptor, min(_PIECE, most - at), at)):
            at += len(piece)
            yield piece

    def read(self, size: int, offset: int) -> bytes:
        """Bytes at a place.

        Raises:
            LvlmError: The file ends before; it was cut off since it was opened.
        """
        found = os.pread(self.descriptor, size, offset)
        if len(found) != size:
            raise changed(self.path)
        return found


def changed(path: Path) -> LvlmError:
    """The error for a file that is no longer what was checked."""
    return LvlmError(
        f"the bundle changed under the session: {path} is not what it was; open it again"
    )


def open_checked(directory: Path, name: str, ref: FileRef) -> CheckedFile:
    """Open a file of a bundle, of the right size.

    Raises:
        LvlmError: It is not there, leads out of the bundle, or has another size.
    """
    path = directory / name
    try:
        held = CheckedFile(path)
        inside = path.resolve().is_relative_to(directory.resolve())
    except FileNotFoundError:
        raise LvlmError(f"{directory} lacks {name}; {REBUILD}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LvlmError(f"{path} cannot be read ({reason}); {REBUILD}") from None
    if not inside:
        raise LvlmError(
            f"{path} is a link that leads out of the bundle, as all files of a hub's cache are; copy"
            f" it with its files, `cp -rL {directory} COPY`, or download it with `huggingface-cli"
            " download REPOSITORY --local-dir COPY`"
        )
    size = held.status().st_size
    if size != ref.size_bytes:
        raise LvlmError(f"{path} has {size} bytes instead of {ref.size_bytes}; {REBUILD}")
    return held


def is_intact(held: CheckedFile, ref: FileRef) -> bool:
    """Hash an open file: is it what it must be?"""
    digest = hashlib.sha256()
    for piece in held.pieces(ref.size_bytes):
        digest.update(piece)
    return digest.hexdigest() == ref.sha256


def read_listed(directory: Path, files: Mapping[str, FileRef], name: str) -> bytes:
    """The bytes of a file that a manifest lists, hashed on their way in.

    Raises:
        LvlmError: It is not listed, not there, or damaged.
    """
    if name not in files:
        raise LvlmError(f"{directory} lists no {name} in its {MANIFEST}; {REBUILD}")
    ref = files[name]
    if ref.size_bytes > MOST_BYTES:
        raise LvlmError(
            f"{directory / name} has {ref.size_bytes / 1e6:.0f} MB, and no file of a bundle but"
            f" {WEIGHTS} has more than {MOST_BYTES / 1e6:.0f}; {REBUILD}"
        )
    data = b"".join(open_checked(directory, name, ref).pieces(ref.size_bytes))
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise damaged(directory / name)
    return data


def damaged(path: Path) -> LvlmError:
    """The error for bytes that are not those of the manifest."""
    return LvlmError(f"{path} is damaged: its SHA-256 is not the manifest's; {REBUILD}")


def read_described(path: Path, key: PublicKey | None, remedy: str) -> Any:
    """The JSON of a file that says what others must be: a manifest, a record of engines.

    Args:
        path: The file.
        key: Whose signature it must have; looked at before anything of the file is.
        remedy: What to do about a damaged one.

    Raises:
        LvlmError: It is not signed as it must be, or no JSON.
        FileNotFoundError: It is not there.
    """
    held = CheckedFile(path)
    size = held.status().st_size
    if size > MOST_BYTES:
        raise LvlmError(f"{path} has {size / 1e6:.0f} MB, more than any; {remedy}")
    data = held.read(size, 0)
    if key is not None:
        verify_signature(data, path, key)
    return records.parse(data, path, remedy)


def has_place(name: str) -> bool:
    """A file of this name, relative to a bundle, may lie in it without being listed."""
    return any(re.fullmatch(pattern, name) for pattern in BESIDE)


def refuse_unlisted(directory: Path, files: Mapping[str, FileRef]) -> None:
    """LvlmError that names what lies in a bundle and has no place there."""
    for path, mode in entries(directory):
        name = path.relative_to(directory).as_posix()
        if name in files or stat.S_ISDIR(mode):
            continue
        if not has_place(name) or not stat.S_ISREG(mode):
            raise LvlmError(
                f"{directory} holds {name!r}, which its {MANIFEST} does not list; move it out of the"
                " bundle: nothing there is used that no hash covers"
            )


def entries(directory: Path) -> Iterator[tuple[Path, int]]:
    """Everything below a directory with its mode, a folder before what is in it, however deep.

    A link is not followed. What goes away meanwhile, as another process's temporary file does when
    it gets its name, is left out.
    """
    waiting = [directory]
    while waiting:
        try:
            found = sorted(waiting.pop().iterdir())
        except FileNotFoundError:
            continue
        for path in found:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            yield path, mode
            if stat.S_ISDIR(mode):
                waiting.append(path)


def file_sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in pieces; ``on_bytes`` is called with each piece's length."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
    return digest.hexdigest()
