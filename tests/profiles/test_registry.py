"""The one way from a name to what stands in a table under it."""

from __future__ import annotations

import pytest

from lvlm_profiles.errors import UsageError
from lvlm_profiles.registry import resolve

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
