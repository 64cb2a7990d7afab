"""The answers of an evaluation as they come, in a file that a later run goes on with."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from lvlm_profiles.files import hold, is_special, named_errors, writable_rights
from lvlm_profiles.readers import UnreadableError, decode, parse_json
from lvlm_profiles.records import read
from lvlm_runtime.errors import LvlmError

# A damaged answer is asked for again where its line is gone.
DELETE = "delete the line, or name another --output"
# The first line is far shorter than this; a file of something else is not read any further.
LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What a bundle answered at one ratio."""

    key: str
    ratio: float
    kind: str
    question: str
    expected: str
    answer: str
    right: bool


class AnswerFile:
    """Answers as they come, one JSON line each; a file of the same run is continued.

    The first line says which run it is. No other file is changed. While it is open, no other run can
    write into it. A device or a pipe is written to and not read.

    Args:
        path: The file.
        run: What must be equal to continue: the bundle's content key and the options of the run.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> answer = Answer("q.jsonl:1", 1.0, "colour", "Which colour?", "red", "Red.", True)
        >>> with AnswerFile(path, {"content_key": "abc"}) as file:
        ...     file.append(answer)
        >>> with AnswerFile(path, {"content_key": "abc"}) as file:
        ...     file.answers == [answer]
        True

    Attributes:
        path: The file.
        answers: Those of an earlier run.

    Raises:
        LvlmError: The file is of another run, or no file of answers, or another run is writing it.
        OSError: It cannot be read or written; ``filename`` is ``path``.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.answers: list[Answer] = []
        with named_errors(path):
            was_there = path.exists()
            self._special = is_special(path)
            self._stream = _open_special(path) if self._special else self._open()
            # Another run may have made the file, and ended, since it was looked for.
            made_here = not was_there and not os.fstat(self._stream.fileno()).st_size
            try:
                self._begin(run)
            except BaseException:
                if made_here:
                    path.unlink(missing_ok=True)
                self._stream.close()
                raise

    def __enter__(self) -> AnswerFile:
        """The file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it, so that another run can go on with it."""
        self._stream.close()

    def append(self, answer: Answer) -> None:
        """Write one answer at once, so that an interruption does not lose it."""
        with named_errors(self.path):
            self._write((json.dumps(asdict(answer), ensure_ascii=False) + "\n").encode())

    def _open(self) -> BinaryIO:
        """The file, held by this process; an empty one where there was none."""
        while True:
            writable_rights(self.path)
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            stream: BinaryIO = os.fdopen(number, "r+b", buffering=0)
            try:
                if hold(stream, self.path):
                    return stream
            except BlockingIOError:
                stream.close()
                raise LvlmError(
                    f"another run is writing {self.path}; wait for it, or name another --output"
                ) from None
            except OSError:
                return (
                    stream  # a file system without locks; two runs at once are the user's to avoid
                )
            stream.close()

    def _begin(self, run: dict[str, Any]) -> None:
        """Say which run this is, or go on with it."""
        head = b"" if self._special else self._stream.read(LINE_BYTES)
        if not head:
            self._write((json.dumps(run) + "\n").encode())
            return
        first = _json(head.partition(b"\n")[0])
        if not isinstance(first, dict) or set(first) != set(run):
            raise LvlmError(f"{self.path} is no file of answers; name another --output")
        if first != run:
            raise LvlmError(
                f"{self.path} holds answers of another bundle or other options; name another"
                " --output or delete it"
            )
        content = head + self._stream.read()
        if b"\n" not in content:
            self._write(b"\n")
            return
        # What stands behind the last line end was cut off with its run, and is asked for again.
        _, *lines = content[: content.rfind(b"\n") + 1].splitlines()
        for number, line in enumerate(lines, start=2):
            where = f"{self.path}:{number}"
            entry = _json(line)
            if entry is None:
                raise LvlmError(f"{where} is no JSON; {DELETE}")
            self.answers.append(read(Answer, entry, where, DELETE))
        self._stream.truncate(content.rfind(b"\n") + 1)

    def _write(self, data: bytes) -> None:
        """Write all of it or nothing; what a full disk took of it is taken back."""
        start = None if self._special else os.fstat(self._stream.fileno()).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        except BaseException:
            if start is not None:
                with contextlib.suppress(OSError):
                    self._stream.truncate(start)
            raise


def _open_special(path: Path) -> BinaryIO:
    stream: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0)
    return stream


def _json(line: bytes) -> Any:
    """The value of a line, None where it is no JSON."""
    try:
        return parse_json(decode(line))
    except UnreadableError:
        return None
