"""Frozen dataclasses from JSON, strictly: the one reader of every file that a program may write.

A message says where, what was expected and what was there. What to do about it only the owner of
the file knows, so every call brings its own remedy, which ends the message:
``engines/rtx/record.json, limits.images: expected int, got 'two'; build them: lvlm-export …``.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from lvlm_profiles.errors import LvlmError, UsageError
from lvlm_profiles.readers import UnreadableError, decode, load_json, parse_json
from lvlm_profiles.registry import unknown_name

T = TypeVar("T")
# Longest part of a wrong value that a message shows.
SHOWN = 60


def read_json(path: Path, remedy: str) -> Any:
    """What the guarded reader of JSON makes of a file.

    Args:
        path: The file.
        remedy: What to do about a damaged one.

    Raises:
        LvlmError: It is no JSON.
        OSError: It is not there or cannot be read.
    """
    try:
        return load_json(path)
    except UnreadableError as error:
        raise LvlmError(f"{path} is damaged: it is no JSON ({error}); {remedy}") from None


def parse(
    data: bytes, where: str | Path, remedy: str, *, constants: bool = False, repeated: bool = False
) -> Any:
    """As ``read_json`` for the bytes of a file that was read already.

    Args:
        data: The bytes.
        where: The file, for the message.
        remedy: What to do about a damaged one.
        constants: As of ``readers.parse_json``.
        repeated: As of ``readers.parse_json``.

    Raises:
        LvlmError: They are no JSON.
    """
    try:
        return parse_json(decode(data), constants=constants, repeated=repeated)
    except UnreadableError as error:
        raise LvlmError(f"{where} is damaged: it is no JSON ({error}); {remedy}") from None


def read(kind: type[T], value: Any, where: str | Path, remedy: str) -> T:
    """A dataclass from plain JSON types: nothing missing, nothing unknown, no wrong type.

    Fields may be dataclasses, ``str``, ``int``, ``bool``, ``float`` (which takes an int too, and no
    bool), ``Any``, ``X | None``, ``dict[str, X]``, ``tuple[X, ...]`` and tuples of a fixed length.

    Args:
        kind: The dataclass, or any of the types above.
        value: What ``json.loads`` or ``dataclasses.asdict`` gave.
        where: The file that it is from.
        remedy: What to do about a wrong one.

    Raises:
        LvlmError: Names the entry that does not fit.
        TypeError: ``kind`` has a field of a type that this does not read: a mistake in the code.

    Example:
        >>> read(dict[str, int], {"tiles": 5}, "layout.json", "build the bundle again")
        {'tiles': 5}
        >>> read(dict[str, int], {"tiles": "five"}, "layout.json", "build the bundle again")
        Traceback (most recent call last):
        ...
        lvlm_profiles.errors.LvlmError: layout.json, tiles: expected int, got 'five'; build the bundle again
    """
    try:
        return typing.cast("T", _read(kind, value, ""))
    except _MismatchError as error:
        raise mismatch(where, error.entry, error.wanted, error.got, remedy) from None


def names_in(directory: Path) -> tuple[str, ...]:
    """Names of a folder's records, a JSON file each."""
    return tuple(sorted(path.stem for path in directory.glob("*.json")))


def path_in(directory: Path, name: str, what: str) -> Path:
    """The file of a folder's record; UsageError that lists the known ones where there is none.

    Example:
        >>> path_in(Path("nowhere"), "orin", "device")
        Traceback (most recent call last):
        ...
        lvlm_profiles.errors.UsageError: unknown device 'orin'; known: none
    """
    known = names_in(directory)
    if name not in known:
        raise UsageError(unknown_name(what, name, known))
    return directory / f"{name}.json"


def read_named(kind: type[T], path: Path, remedy: str) -> T:
    """A record whose ``name`` is that of its file; errors as of ``read_json`` and ``read``."""
    content = read_json(path, remedy)
    if isinstance(content, dict):
        content = {"name": path.stem, **content}
    return read(kind, content, path, remedy)


def mismatch(where: str | Path, entry: str, wanted: str, got: str, remedy: str) -> LvlmError:
    """The error for an entry that does not fit, for rules that no type states.

    Args:
        where: The file.
        entry: The entry in it, ``limits.images``; empty for the whole.
        wanted: What it should be.
        got: What it is.
        remedy: What to do.
    """
    place = f"{where}, {entry}" if entry else f"{where}"
    return LvlmError(f"{place}: expected {wanted}, got {got}; {remedy}")


class _MismatchError(Exception):
    """On its way to ``read``, which knows file and remedy."""

    def __init__(self, entry: str, wanted: str, got: str) -> None:
        super().__init__(entry, wanted, got)
        self.entry, self.wanted, self.got = entry, wanted, got


def _read(kind: Any, value: Any, entry: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, entry)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return None if value is None else _read(options[0], value, entry)
    if origin is tuple:
        return _read_tuple(arguments, value, entry)
    if origin is dict and arguments[0] is str:
        _expect(isinstance(value, dict), value, "an object", entry)
        return {key: _read(arguments[1], item, _join(entry, key)) for key, item in value.items()}
    if kind is float:
        _expect(type(value) in (int, float), value, "a number", entry)
        try:
            return float(value)
        except OverflowError:
            raise _MismatchError(entry, "a number", _shown(value)) from None
    if kind in (int, str, bool):
        _expect(type(value) is kind, value, kind.__name__, entry)
        # Counts and sizes go to libraries that know no larger integers.
        _expect(kind is not int or -(1 << 63) <= value < 1 << 63, value, "64 bits", entry)
        return value
    raise TypeError(f"{entry}: there is no reader for {kind}")


def _read_tuple(kinds: tuple[Any, ...], value: Any, entry: str) -> tuple[Any, ...]:
    # What `asdict` gives has tuples where JSON has lists.
    _expect(isinstance(value, list | tuple), value, "a list", entry)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    _expect(len(value) == len(kinds), value, f"{len(kinds)} entries", entry)
    pairs = zip(kinds, value, strict=True)
    return tuple(_read(kind, item, f"{entry}[{i}]") for i, (kind, item) in enumerate(pairs))


def _read_dataclass(kind: Any, value: Any, entry: str) -> Any:
    _expect(isinstance(value, dict), value, "an object", entry)
    fields = _fields(kind)
    unknown, missing = sorted(set(value) - set(fields)), sorted(set(fields) - set(value))
    if unknown or missing:
        words = [f"unknown {_shown(name)}" for name in unknown]
        words += [f"no {_shown(name)}" for name in missing]
        raise _MismatchError(entry, "exactly the known entries", ", ".join(words))
    return kind(
        **{name: _read(each, value[name], _join(entry, name)) for name, each in fields.items()}
    )


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    """Name -> type; a manifest has one record per tensor, and resolving types takes time."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _join(entry: str, name: str) -> str:
    return f"{entry}.{name}" if entry else name


def _expect(condition: bool, value: Any, wanted: str, entry: str) -> None:
    if not condition:
        raise _MismatchError(entry, wanted, _shown(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
