"""Decisions of reducers: recorded, repeated, and how near their scores are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lvlm_export.check.decisions import Decisions
from lvlm_export.reduction import load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.reducers import DecoderReducer, VisionReducer


def keep_two(scores: Tensor) -> Tensor:
    return scores.topk(2, dim=-1).indices


def test_what_is_a_choice_and_what_is_not() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.4]])
    with Decisions() as decisions:
        scores.topk(2, dim=-1)
        scores.argmax(dim=-1, keepdim=True)
        scores.argmin(dim=1)
        scores.max(dim=0)
        _ = scores > 0.4
        # Numbers, choices of nothing, and choices among integers, which have no rounding.
        scores.topk(0, dim=-1)
        scores.max()
        scores.argmax()
        scores.amax(dim=-1)
        _ = torch.arange(3) > 1
    assert [choice.dim for choice in decisions.made] == [1, 1, 1, 0, None]
    shapes = [tuple(choice.chosen.shape) for choice in decisions.made]
    assert shapes == [(2, 2), (2, 1), (2, 1), (1, 3), (2, 3)]


def test_a_repeated_choice_brings_the_values_of_its_own_places() -> None:
    first, second = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.5, 2.4]])

    def largest(scores: Tensor) -> tuple[list[float], list[int]]:
        values, index = scores.max(dim=-1)
        return values.tolist(), index.tolist()

    with Decisions() as made:
        assert largest(first) == ([3.0], [2])
    with Decisions(made.made) as repeated:
        assert largest(second) == ([np.float32(2.4)], [2])
    (tie,) = repeated.ties
    assert (tie.gap, tie.places) == (pytest.approx(1 / 3), 1)


def test_another_order_of_the_same_places_is_told_apart() -> None:
    with Decisions() as made:
        keep_two(torch.tensor([3.0, 2.999, 1.0]))
    with Decisions(made.made) as repeated:
        assert keep_two(torch.tensor([2.999, 3.0, 1.0])).tolist() == [0, 1]
    (tie,) = repeated.ties
    assert (tie.gap, tie.places) == (pytest.approx(1 / 3000, rel=1e-3), 0)


def test_comparisons_count_the_pairs_that_differ() -> None:
    def above(scores: Tensor) -> Tensor:
        return scores > scores.mean()

    with Decisions() as made:
        above(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    with Decisions(made.made) as repeated:
        assert above(torch.tensor([1.0, 2.0, 3.0, 2.5])).tolist() == [False, False, False, True]
    (tie,) = repeated.ties
    assert tie.places == 1
    assert tie.gap == pytest.approx(1 / 10)  # 3 below the mean of 4, of scores up to 10


@given(
    scores=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=24),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
)
def test_a_gap_is_at_most_twice_the_difference_of_the_scores(
    scores: list[float], seed: int, noise: float
) -> None:
    first = torch.tensor(scores)
    generator = torch.Generator().manual_seed(seed)
    moved = first + noise * (2 * torch.rand(len(scores), generator=generator) - 1)
    apart = float((moved - first).abs().max())
    with Decisions() as made:
        keep_two(first)
    with Decisions(made.made) as repeated:
        assert torch.equal(keep_two(moved), made.made[0].chosen)
    scale = max(float(first.topk(2).values.abs().max()), 1e-30)
    assert all(tie.gap * scale <= 2 * apart * (1 + 1e-5) for tie in repeated.ties)


SITES = {
    "illava": Site("vision", 2),
    "illava_v1": Site("decoder", 2),
    "tome": Site("vision", 2),
    "prumerge": Site("features", 4),
    "visionzip": Site("features", 4),
    "visprune": Site("features", 4),
    "fastv": Site("decoder", 2),
    "dart": Site("decoder", 2),
    "sparsevlm": Site("decoder", 2),
}


@pytest.mark.parametrize("name", SITES)
def test_a_reducer_led_by_another_run_gives_what_that_run_chose(name: str) -> None:
    """On other inputs too: every choice of the selectors is seen."""
    site = SITES[name]
    # ToMe can take half of its tokens at most.
    shape = ReducerShape(24, 13 if name == "tome" else 8, 0, 0.25, 0)
    selector = load_method(name).selector(site, shape)
    generator = torch.Generator().manual_seed(3)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    inputs: tuple[Tensor, ...]
    reducer: DecoderReducer | VisionReducer
    if site.stage == "decoder":
        reducer = DecoderReducer(shape, selector)
        visual = torch.arange(3, 27)[None]
        order = torch.arange(40)[[*range(3), *range(32, 40), *range(27, 32)]]
        text = torch.tensor([0, 1, 2, 27, 28, 29, 30, 31])
        places = (torch.arange(32)[None], visual, order, text, noise(1, 8, 16), noise(1, 24, 16))

        def make() -> tuple[Tensor, ...]:
            states = (noise(1, 32, 16), noise(1, 4, 32, 4), noise(1, 2, 36, 4))
            return (*states, *places)[: len(reducer.inputs)]
    else:
        reducer = VisionReducer(shape, selector)

        def make() -> tuple[Tensor, ...]:
            states = (noise(2, 24, 16), noise(2, 4, 24, 4), noise(2, 4, 24, 4))
            return (*states, torch.ones(2, 24))[: len(reducer.inputs)]

    inputs = make()
    with Decisions() as made:
        before = reducer(*inputs)
    assert made.made
    with Decisions(made.made) as again:
        after = reducer(*inputs)
    assert again.ties == []
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with Decisions(made.made) as other:
        led = reducer(*make())
    assert other.ties
    place = reducer.outputs.index("places")
    assert torch.equal(led[place], before[place])
