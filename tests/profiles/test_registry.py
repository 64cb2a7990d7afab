"""The one way from a name to what stands in a table under it."""

from __future__ import annotations

import pytest

from lvlm_profiles.errors import UsageError
from lvlm_profiles.registry import resolve, unknown_name

TABLE = {"one": "lvlm_profiles.statistics:percentile", "two": "nowhere.at_all:THING"}


def test_an_entry_is_imported() -> None:
    from lvlm_profiles.statistics import percentile

    assert resolve(TABLE, "one", "number") is percentile


def test_only_the_entry_that_is_wanted_is_imported() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        resolve(TABLE, "two", "number")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"^unknown number 'three'; known: one, two$"):
        resolve(TABLE, "three", "number")


def test_an_unknown_name_is_told_what_was_probably_meant() -> None:
    with pytest.raises(UsageError, match=r"'TWO'; did you mean 'two'\? known: one, two$"):
        resolve(TABLE, "TWO", "number")
    assert "did you mean" not in unknown_name("number", "on", ["one_of_many"])
    assert unknown_name("number", "x", []) == "unknown number 'x'; known: none"
