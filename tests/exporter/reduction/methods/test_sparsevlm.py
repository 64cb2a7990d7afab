"""SparseVLM: the published lists, raters as weights, clusters, and the numpy statement."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_methods
from lvlm_export.reduction import load_method
from lvlm_export.reduction.budget import Geometry
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.sparsevlm import (
    PUBLISHED,
    candidate_count,
    cluster_count,
    counts_with_clusters,
    log_shares,
    split_budget,
)
from lvlm_export.reduction.schedule import plan_budget
from lvlm_export.reduction.selectors import Clues
from lvlm_export.reduction.selectors.sparsevlm import cluster_tokens, rater_weights
from lvlm_runtime.image import anyres

LLAVA = Geometry(23, 576, 32, (anyres.IMAGE_LAYOUT,), False, lambda _layout, kept: kept)


@pytest.mark.parametrize(
    ("kept", "after"),
    [
        ((300, 200, 110), (309, 204, 113)),
        ((303, 110, 36), (312, 117, 39)),
        ((238, 48, 26), (249, 55, 27)),
        ((66, 30, 17), (82, 32, 18)),
    ],
)
def test_published_lists(kept: tuple[int, ...], after: tuple[int, ...]) -> None:
    """score.py:9-21 of the authors' first version; recycled clusters come on top."""
    assert kept in PUBLISHED.values()
    assert counts_with_clusters(kept) == after
    budget = plan_budget(after[-1] / 576, load_method("sparsevlm"), LLAVA)
    counts = budget.layouts[0].decoder
    assert [count.site.name for count in counts] == ["decoder@3", "decoder@7", "decoder@16"]
    assert [split_budget(count.tokens_in, count.tokens_out)[0] for count in counts] == list(kept)


def test_recycled_counts() -> None:
    """276 pruned tokens give 83 candidates and 9 clusters (METHODS §7)."""
    assert (candidate_count(276), cluster_count(276)) == (83, 9)


@given(tokens=st.integers(1, 800), data=st.data())
@settings(deadline=None, max_examples=200)
def test_kept_and_clusters_are_the_budget(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens))
    kept, recycled = split_budget(tokens, keep)
    assert kept + recycled == keep
    assert kept >= 1
    assert recycled <= tokens - kept


@given(ratio=st.floats(0.01, 0.999))
def test_shares_rise_to_one(ratio: float) -> None:
    shares = (0.0, *log_shares(ratio))
    assert all(one < other for one, other in itertools.pairwise(shares))
    assert shares[-1] == 1


def clues_for(seed: int, text: int, visual: int, before: int) -> Clues:
    """Two images and text, the first ``before`` rows of which stand before the second image."""
    generator = np.random.default_rng(seed)
    as_tensor = lambda *shape: torch.tensor(generator.standard_normal(shape), dtype=torch.float32)  # noqa: E731
    after = torch.ones((2, text), dtype=torch.bool)
    after[1, :before] = False
    attention = as_tensor(2, text, visual).exp() * after.unsqueeze(-1)
    return Clues(
        text_attention=attention,
        text_embeds=as_tensor(text, 8),
        visual_embeds=as_tensor(2, 30, 8),
        text_after=after,
    )


@pytest.mark.parametrize("seed", range(4))
def test_raters_are_the_rows_above_the_mean(seed: int) -> None:
    clues = clues_for(seed, 9, 20, 4)
    weights = rater_weights(clues)
    assert clues.text_embeds is not None
    assert clues.visual_embeds is not None
    for image, first in ((0, 0), (1, 4)):
        text, visual = clues.text_embeds[first:].numpy(), clues.visual_embeds[image].numpy()
        expected = [first + row for row in numpy_methods.raters(text, visual)]
        assert weights[image].nonzero().flatten().tolist() == expected
        assert weights[image].sum() == pytest.approx(1)


def test_all_text_rates_where_none_stands_out() -> None:
    clues = clues_for(0, 1, 20, 0)
    assert rater_weights(clues).tolist() == [[1], [1]]


@pytest.mark.parametrize("keep", [1, 2, 9, 15, 28, 30])
def test_sparsevlm_equals_the_numpy_statement(keep: int) -> None:
    clues = clues_for(keep, 9, 30, 4)
    tokens = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(keep))
    shape = ReducerShape(30, keep, 0, 1.0, 0)
    got, places = load_method("sparsevlm").selector(Site("decoder", 3), shape)(tokens, clues)
    assert clues.text_attention is not None
    for image in range(2):
        rating = rater_weights(clues)[image].nonzero().flatten().tolist()
        rows = tokens[image].double().numpy(), clues.text_attention[image].double().numpy()
        expected_places, expected = numpy_methods.sparsevlm(*rows, rating, *split_budget(30, keep))
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_clusters_are_density_peaks(count: int) -> None:
    generator = np.random.default_rng(count)
    heaps = generator.standard_normal((count, 6)) * 8
    tokens = np.repeat(heaps, 7, axis=0) + generator.standard_normal((count * 7, 6))
    centres, means = cluster_tokens(torch.tensor(tokens, dtype=torch.float32)[None], count)
    expected, members = numpy_methods.density_peaks(tokens, count)
    assert centres[0].tolist() == expected
    for mean, group in zip(means[0].numpy(), members, strict=True):
        np.testing.assert_allclose(mean, tokens[group].mean(axis=0), atol=1e-4)
    assert sorted(len(group) for group in members) == [7] * count


def test_equal_tokens_have_an_order() -> None:
    centres, means = cluster_tokens(torch.ones(1, 6, 4), 2)
    assert centres[0].tolist() == [0, 1]
    torch.testing.assert_close(means, torch.ones(1, 2, 4))
