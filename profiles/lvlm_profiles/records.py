"""Frozen dataclasses to JSON and back, strictly. For files that other programs may write."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class RecordError(ValueError):
    """An entry that does not fit; the message names it."""


def read(kind: type[T], value: Any, where: str = "report") -> T:
    """A dataclass from plain JSON types: nothing missing, nothing unknown, no wrong type.

    Raises:
        RecordError: Names the entry that does not fit.
    """
    return typing.cast("T", _read(kind, value, where))


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        inner = next(option for option in arguments if option is not type(None))
        return None if value is None else _read(inner, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), value, "a list", where)
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _expect(type(value) in (int, float), value, "a number", where)
        return float(value)
    _expect(type(value) is kind, value, kind.__name__, where)
    return value


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, "an object", where)
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    odd = sorted(set(value) ^ names)
    _expect(not odd, ", ".join(odd), "exactly the known entries", where)
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in names})


def _expect(condition: bool, value: Any, wanted: str, where: str) -> None:
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise RecordError(f"{where}: expected {wanted}, got {shown}")
