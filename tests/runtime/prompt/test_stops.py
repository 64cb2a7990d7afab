"""Texts that end an answer, wherever its pieces are cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.stops import StopTexts, stop_texts


def until_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop that is complete ends it, the longest of several."""
    for end in range(1, len(text) + 1):
        ending = [each for each in stops if text[:end].endswith(each)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(
    pieces=st.lists(st.text("ab#", max_size=4), max_size=8),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
)
def test_pieces_give_what_stands_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    found = StopTexts(stops)
    out = "".join(found.push(piece) for piece in pieces)
    out += "" if found.found else found.flush()
    assert (out, found.found) == until_stop("".join(pieces), stops)


def test_nothing_is_held_back_without_need() -> None:
    stops = StopTexts(["\n\n"])
    assert [stops.push(each) for each in ("one\n", "two", "\n", "\n", "x")] == [
        "one",
        "\ntwo",
        "",
        "",
        "",
    ]
    assert stops.found


@pytest.mark.parametrize("stop", ["", ["a", ""], [b"a"], [None]])
def test_an_empty_stop_is_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match=r"stop has .*, a text of 1 character or more is needed"):
        stop_texts(stop)
