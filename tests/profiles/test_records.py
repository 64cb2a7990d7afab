"""The reader of dataclasses from JSON: what it takes, and what it says of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest

from lvlm_profiles.errors import LvlmError, UsageError
from lvlm_profiles.records import read, read_json


@dataclass(frozen=True)
class Inner:
    """One of everything."""

    count: int
    share: float
    name: str
    flag: bool


@dataclass(frozen=True)
class Outer:
    """Everything inside something."""

    inner: Inner
    maybe: Inner | None
    older: Optional[int]  # noqa: UP045 - both spellings of the union are read
    pair: tuple[int, str]
    some: tuple[tuple[float, float], ...]
    named: dict[str, Inner]
    anything: Any
    with_default: int = 3


INNER = {"count": 1, "share": 0.5, "name": "x", "flag": True}
OUTER: dict[str, Any] = {
    "inner": INNER,
    "maybe": None,
    "older": 7,
    "pair": [1, "a"],
    "some": [[1, 2.5]],
    "named": {"b": INNER},
    "anything": {"free": [None, {"form": 1}]},
    "with_default": 4,
}


def test_everything_is_read() -> None:
    inner = Inner(1, 0.5, "x", True)
    expected = Outer(inner, None, 7, (1, "a"), ((1.0, 2.5),), {"b": inner}, OUTER["anything"], 4)
    found = read(Outer, OUTER, "f.json", "mend it")
    assert found == expected
    assert isinstance(found.some[0][0], float), "a whole number in JSON is a number all the same"
    assert read(Outer, {**OUTER, "maybe": INNER, "older": None}, "f", "m").maybe == inner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": 3}, "inner: expected an object, got 3"),
        ({"inner": {**INNER, "count": 1.0}}, "inner.count: expected int, got 1.0"),
        ({"inner": {**INNER, "count": True}}, "inner.count: expected int, got True"),
        ({"inner": {**INNER, "share": True}}, "inner.share: expected a number, got True"),
        ({"inner": {**INNER, "share": "1"}}, "inner.share: expected a number, got '1'"),
        ({"inner": {**INNER, "share": None}}, "inner.share: expected a number, got None"),
        ({"inner": {**INNER, "name": 1}}, "inner.name: expected str, got 1"),
        ({"inner": {**INNER, "flag": 1}}, "inner.flag: expected bool, got 1"),
        ({"maybe": []}, "maybe: expected an object, got []"),
        ({"older": "7"}, "older: expected int, got '7'"),
        ({"pair": [1]}, "pair: expected 2 entries, got [1]"),
        ({"pair": [1, "a", "b"]}, "pair: expected 2 entries, got [1, 'a', 'b']"),
        ({"pair": ["a", 1]}, "pair[0]: expected int, got 'a'"),
        ({"pair": "1a"}, "pair: expected a list, got '1a'"),
        ({"some": [[1, 2], [3]]}, "some[1]: expected 2 entries, got [3]"),
        ({"named": []}, "named: expected an object, got []"),
        ({"named": {"b": {**INNER, "name": None}}}, "named.b.name: expected str, got None"),
        ({"more": 1}, "expected exactly the known entries, got unknown 'more'"),
        (
            {"inner": {"count": 1, "share": 1, "colour": "red"}},
            "inner: expected exactly the known entries, got unknown 'colour', no 'flag', no 'name'",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LvlmError) as refused:
        read(Outer, {**OUTER, **change}, "f.json", "mend it")
    place = "f.json: " if message.startswith("expected") else "f.json, "
    assert str(refused.value) == f"{place}{message}; mend it"
    assert not isinstance(refused.value, UsageError)


def test_a_default_takes_the_place_of_nothing() -> None:
    """What is left out of a file was not meant to be the default."""
    content = {name: value for name, value in OUTER.items() if name != "with_default"}
    with pytest.raises(LvlmError, match="known entries, got no 'with_default'; mend it"):
        read(Outer, content, "f.json", "mend it")


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(LvlmError, match=r"^f\.json: expected a number, got 1000.*\.\.\.; mend it$"):
        read(float, 10**400, "f.json", "mend it")


def test_a_long_value_is_cut_and_one_line() -> None:
    with pytest.raises(LvlmError) as refused:
        read(int, "a\nb" * 1000, "f.json", "mend it")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize("kind", [list[int], dict[int, str], int | str, bytes, tuple])
def test_a_field_that_it_cannot_read_is_a_mistake_in_the_code(kind: Any) -> None:
    with pytest.raises(TypeError, match="there is no reader for"):
        read(kind, {}, "f.json", "mend it")


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LvlmError, match=r"f\.json is damaged: it is no JSON \(.*\); mend it$"):
        read_json(path, "mend it")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b"\xff{}")
    with pytest.raises(LvlmError, match="it is no JSON"):
        read_json(path, "mend it")


def test_a_file_that_is_not_there_is_the_callers_to_explain(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "f.json", "mend it")
