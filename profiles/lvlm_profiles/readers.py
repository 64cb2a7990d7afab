"""What comes in from outside: bytes, text, JSON, JSON lines and gzip, each read in one guarded way.

A file that somebody gives may be of another kind, enormous, cut short, or written to hurt. Whatever
is wrong with it ends as one ``UnreadableError`` here, so that what stands behind a reader meets plain
values only: UTF-8 text that can be printed, numbers that fit, lists and tables of bounded depth.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Most that is read of a file that is parsed; the largest that are known, a hub's tokenizer.json and a
# report with a sweep, have some tens of megabytes.
MOST_BYTES = 64 << 20
# Deepest that values nest. Files of this program and configurations of checkpoints stay below 12; what
# walks over values (dataclasses, copies, other libraries) recurses, and Python stops at about 1000.
MOST_DEPTH = 64
# Tokenizers write 10**30 where they mean "no limit".
MOST_DIGITS = 40
# How files begin that are given in place of others.
BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"%PDF", "a PDF file"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


class UnreadableError(ValueError):
    """A file that cannot be what it should be.

    The message says why, without the file and what to do: those who read it know both, as in
    ``f"{path} is no JSON ({error}); {remedy}"``.
    """


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file.

    Args:
        path: The file. A named pipe would block for ever and a device may never end, so both are
            refused.
        most: Bytes that are read at most.

    Raises:
        UnreadableError: It is no regular file, or larger.
        OSError: It is not there or cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as stream:  # noqa: PTH123
        data = stream.read(most + 1)
    if len(data) > most:
        raise UnreadableError(f"it is larger than the {most / 1e6:.0f} MB that are read")
    return data


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """A UTF-8 file; errors as of ``read_bytes`` and ``decode``."""
    return decode(read_bytes(path, most))


def decode(data: bytes) -> str:
    r"""UTF-8 bytes as text.

    Raises:
        UnreadableError: Another encoding, or no text at all; says what it looks like.

    Example:
        >>> decode(b"\x89PNG\r\n\x1a\n")
        Traceback (most recent call last):
        ...
        lvlm_profiles.readers.UnreadableError: it is a PNG picture
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise UnreadableError("it begins with a byte order mark: save it as UTF-8 without one")
    kind = _kind(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"it is {kind or f'not UTF-8 text: {error.reason} at byte {error.start}'}"
        ) from None
    if "\0" in text:
        raise UnreadableError(f"it is {kind or 'not text: it holds NUL bytes'}")
    if kind is not None and "git-lfs" in kind:
        raise UnreadableError(f"it is {kind}")
    return text


def what_is(path: str | os.PathLike[str]) -> str:
    """What lies at a path, in a few words for the message that something else should be there.

    Example:
        >>> what_is("/dev/null"), what_is("nowhere/at/all")
        ('a device, not a file', 'not there')
    """
    path = Path(path)
    try:
        if path.is_dir():
            inside = (("manifest.json", "a bundle"), ("config.json", "a checkpoint"))
            found = (kind for name, kind in inside if (path / name).is_file())
            return next(found, "a directory")
        check_regular(path)
        with path.open("rb") as stream:
            return _kind(stream.read(64)) or "a file"
    except UnreadableError as error:
        return str(error).removeprefix("it is ")
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return f"not readable ({(error.strerror or str(error)).lower()})"


def load_json(
    path: str | os.PathLike[str],
    most: int = MOST_BYTES,
    *,
    constants: bool = False,
    repeated: bool = False,
) -> Any:
    """What ``parse_json`` makes of a file; errors as of ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, most), constants=constants, repeated=repeated)


def parse_json(text: str, *, constants: bool = False, repeated: bool = False) -> Any:
    """Plain values from JSON.

    Args:
        text: The JSON.
        constants: NaN, Infinity and -Infinity may stand in it, which are no JSON but which Python
            writes; configurations of checkpoints hold them where nobody counts with them.
        repeated: An entry of a table may stand twice, of which the last counts, as transformers reads
            the files of checkpoints.

    Raises:
        UnreadableError: It is no JSON, names an entry of a table twice, or holds what
            ``check_values`` refuses.

    Example:
        >>> parse_json('{"ratio": 0.5, "ratio": 0.33}')
        Traceback (most recent call last):
        ...
        lvlm_profiles.readers.UnreadableError: 'ratio' stands twice in one table
    """
    try:
        value = json.loads(text, object_pairs_hook=None if repeated else _table)
    except UnreadableError:
        raise
    except RecursionError:
        raise UnreadableError(f"it nests deeper than {MOST_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(str(error)) from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise UnreadableError(f"it holds a number of more than {MOST_DIGITS} digits") from None
    check_values(value, constants=constants)
    return value


def parse_json_lines(text: str) -> Iterator[tuple[int, Any]]:
    r"""Number and value of every line that is not empty.

    Lines end with a line feed alone: other ends that Unicode knows may stand inside a JSON string.

    Raises:
        UnreadableError: As of ``parse_json``; the number of the line stands in front.

    Example:
        >>> list(parse_json_lines('{"a": 1}\n\n[2]\n'))
        [(1, {'a': 1}), (3, [2])]
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except UnreadableError as error:
                raise UnreadableError(f"line {number}: {error}") from None


def unzip(data: bytes, most: int = MOST_BYTES) -> bytes:
    """What gzip packed, one member or several.

    Args:
        data: The packed bytes.
        most: Bytes that are unpacked at most, whatever the file says: a thousandth of them can hold
            as many zeros.

    Raises:
        UnreadableError: No gzip, cut short, damaged, or larger unpacked.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            out = stream.read(most + 1)
    except EOFError:
        raise UnreadableError("it is a gzip file that is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableError(f"it is no gzip file or a damaged one: {error}") from None
    if len(out) > most:
        raise UnreadableError(f"it is larger than {most / 1e6:.0f} MB when unpacked")
    return out


def check_values(value: Any, *, constants: bool = False) -> None:
    """Refuse what a format allows and nothing behind a reader expects.

    Args:
        value: What a parser gave.
        constants: Infinite numbers and NaN may stand in it.

    Raises:
        UnreadableError: Too deep a nest, a number of too many digits, an infinite number or NaN, half
            of a surrogate pair (text that no file or terminal takes).
    """
    left = [(value, 0)]
    while left:
        each, depth = left.pop()
        if depth > MOST_DEPTH:
            raise UnreadableError(f"it nests deeper than {MOST_DEPTH} levels")
        if isinstance(each, dict):
            left += [(part, depth + 1) for part in (*each.keys(), *each.values())]
        elif isinstance(each, list | tuple):
            left += [(part, depth + 1) for part in each]
        elif isinstance(each, str):
            _check_text(each)
        elif isinstance(each, int) and abs(each) >= 10**MOST_DIGITS:
            raise UnreadableError(f"it holds a number of more than {MOST_DIGITS} digits")
        elif isinstance(each, float) and not constants and not math.isfinite(each):
            raise UnreadableError("it holds a number that is infinite or none (NaN)")


def _kind(data: bytes) -> str | None:
    return next((kind for beginning, kind in BEGINNINGS if data.startswith(beginning)), None)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UnreadableError("it holds half of a surrogate pair, which is no text") from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, before it is opened: libraries wait for a pipe without end.

    Raises:
        UnreadableError: It is a directory, a pipe, a device …
        OSError: It is not there.
    """
    if "\0" in os.fspath(path):
        raise UnreadableError("its name holds a NUL byte")
    mode = os.stat(path).st_mode  # noqa: PTH116  # a name is enough
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    kind = next((kind for test, kind in kinds if test(mode)), "a device")
    raise UnreadableError(f"it is {kind}, not a file")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise UnreadableError(f"{name[:60]!a} stands twice in one table")
            seen.add(name)
    return table
