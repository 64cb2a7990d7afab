"""Where text and images stand, as properties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lvlm_runtime.sequence import place, text_runs


@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    per_image=st.integers(1, 6),
)
def test_every_row_is_placed_once_and_in_prompt_order(runs: list[int], per_image: int) -> None:
    text = sum(runs)
    placed = place(runs, np.arange(text), text, per_image)
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
    before = place(runs, np.arange(text), text, per_image)
    after = place(runs, before.text, len(before.order), keep)
    assert len(after.order) == text + (len(runs) - 1) * keep
    assert after.order[after.text].tolist() == before.text.tolist()


def test_text_runs_split_at_placeholders() -> None:
    assert text_runs([1, 9, 2, 3, 9, 9], 9) == [[1], [2, 3], [], []]
    assert text_runs([1, 2], 9) == [[1, 2]]
