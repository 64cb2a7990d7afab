"""Positions of text and images, as properties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lvlm_runtime.prompt.sequence import Origins, place_tokens, position_ids, text_runs


@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    per_image=st.integers(1, 6),
)
def test_every_row_is_placed_once_and_in_prompt_order(runs: list[int], per_image: int) -> None:
    text = sum(runs)
    placed = place_tokens(runs, np.arange(text), text, per_image)
    images = len(runs) - 1
    assert sorted(placed.order.tolist()) == list(range(text + images * per_image))
    assert placed.visual.shape == (images, per_image)
    assert placed.order[placed.text].tolist() == list(range(text))
    for image in range(images):
        start = text + image * per_image
        assert placed.order[placed.visual[image]].tolist() == list(range(start, start + per_image))
        assert placed.visual[image][0] == sum(runs[: image + 1]) + image * per_image


@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    per_image=st.integers(2, 6),
    keep=st.integers(1, 2),
)
def test_reducing_moves_text_up_and_keeps_its_order(
    runs: list[int], per_image: int, keep: int
) -> None:
    text = sum(runs)
    before = place_tokens(runs, np.arange(text), text, per_image)
    after = place_tokens(runs, before.text, len(before.order), keep)
    assert len(after.order) == text + (len(runs) - 1) * keep
    assert after.order[after.text].tolist() == before.text.tolist()


def test_text_runs_split_at_placeholders() -> None:
    assert text_runs([1, 9, 2, 3, 9, 9], 9) == [[1], [2, 3], [], []]
    assert text_runs([1, 2], 9) == [[1, 2]]


@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    tokens=st.integers(1, 8),
)
def test_unreduced_positions_count_through(runs: list[int], tokens: int) -> None:
    images = len(runs) - 1
    ids, after = position_ids(runs, Origins.whole(images, tokens) if images else None)
    assert ids.tolist() == list(range(sum(runs) + images * tokens))
    assert after == len(ids)


def test_kept_tokens_keep_their_place_and_text_goes_on_after_the_whole_image() -> None:
    origins = Origins.whole(2, 9).keep(np.array([[1, 4, 8], [0, 2, 3]]))
    ids, after = position_ids([2, 1, 3], origins)
    assert ids.tolist() == [0, 1, 3, 6, 10, 11, 12, 14, 15, 21, 22, 23]
    assert after == 24


def test_two_reductions_compose() -> None:
    once = Origins.whole(1, 9).keep(np.array([[1, 4, 6, 8]]))
    assert once.keep(np.array([[0, 2]])).offsets.tolist() == [[1, 6]]


def test_a_token_that_is_no_patch_stands_at_its_end_of_the_image() -> None:
    origins = Origins.whole(1, 9).keep(np.array([[-1, 2, 5, -1]]))
    assert origins.offsets.tolist() == [[0, 2, 5, 8]]
