"""Reducers as properties, and against an independent numpy statement of the method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import numpy_methods
from lvlm_export.reduction import METHODS, load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.reducers import DecoderReducer, VisionReducer
from lvlm_export.reduction.tensors import (
    last_row_attention,
    merge_least_attended,
    received_attention,
)
from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.sequence import place_tokens

SITE = Site("vision", 3)


def methods_in(stage: str) -> list[str]:
    """Methods with a site in a stage, some tokens of which stay."""
    return [
        name
        for name in METHODS
        for method in (load_method(name),)
        if not method.withdraws and stage in {site.stage for site in method.sites(26, 28, 0.5)}
    ]


def distinct_scores(batch: int, count: int, seed: int) -> torch.Tensor:
    """Scores without ties, so that a ranking is unique."""
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(count) / count for _ in range(batch)]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    keep, seed = draw(st.integers(1, count)), draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    return torch.randn(batch, count, 6), distinct_scores(batch, count, seed), keep


@given(cases())
@settings(deadline=None, max_examples=60)
def test_merge_equals_the_numpy_statement(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    tokens, scores, keep = case
    merged, places = merge_least_attended(tokens, scores, keep)
    assert merged.shape == (tokens.shape[0], keep, tokens.shape[2])
    for row in range(len(tokens)):
        args = tokens[row].double().numpy(), scores[row].numpy(), keep
        expected_places, expected = numpy_methods.illava_v1(*args)
        np.testing.assert_allclose(merged[row].numpy(), expected, atol=1e-5)
        assert places[row].tolist() == expected_places


@given(cases())
@settings(deadline=None, max_examples=30)
def test_keeping_everything_is_the_identity(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    tokens, scores, _ = case
    merged, places = merge_least_attended(tokens, scores, tokens.shape[1])
    assert torch.equal(merged, tokens)
    assert torch.equal(places[0], torch.arange(tokens.shape[1]))


@given(cases(), st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_merge_follows_a_permutation(
    case: tuple[torch.Tensor, torch.Tensor, int], seed: int
) -> None:
    """Shuffling the tokens shuffles the result: the same set of rows in the shuffled order."""
    tokens, scores, keep = case
    order = torch.from_numpy(np.random.default_rng(seed).permutation(tokens.shape[1]))
    plain, _ = merge_least_attended(tokens, scores, keep)
    shuffled, _ = merge_least_attended(tokens[:, order], scores[:, order], keep)
    key = lambda rows: sorted(map(tuple, np.round(rows.numpy(), 4).tolist()))  # noqa: E731
    for row in range(len(tokens)):
        np.testing.assert_allclose(key(plain[row]), key(shuffled[row]), atol=2e-4)


@given(cases())
@settings(deadline=None, max_examples=30)
def test_images_of_a_batch_do_not_touch(case: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    tokens, scores, keep = case
    together, _ = merge_least_attended(tokens, scores, keep)
    for row in range(len(tokens)):
        alone, _ = merge_least_attended(tokens[row : row + 1], scores[row : row + 1], keep)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_least_attended_token_weighs_most() -> None:
    tokens = torch.eye(4)[None]
    merged, places = merge_least_attended(tokens, torch.tensor([[0.4, 0.1, 0.2, 0.3]]), 2)
    assert places.tolist() == [[0, 3]]
    torch.testing.assert_close(merged[0, 1], torch.tensor([0.0, 3 / 6, 2 / 6, 1 / 6]))


def test_received_attention_is_the_column_mean_of_the_softmax() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    logits = query.numpy() @ key.numpy().transpose(0, 1, 3, 2) * 0.5
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = weights.mean(axis=(1, 2))
    np.testing.assert_allclose(received_attention(query, key, 0.5).numpy(), expected, rtol=1e-5)


def test_last_row_attention_shares_keys_between_grouped_heads() -> None:
    torch.manual_seed(0)
    query, cache = torch.randn(1, 4, 5, 3), torch.randn(1, 2, 9, 3)
    rows = []
    for head in range(4):
        logits = cache[0, head // 2, :5].numpy() @ query[0, head, -1].numpy() * 0.7
        rows.append(np.exp(logits) / np.exp(logits).sum())
    got = last_row_attention(query, cache, 0.7)
    np.testing.assert_allclose(got.numpy(), np.mean(rows, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", methods_in("vision"))
@pytest.mark.parametrize("prefix", [0, 1])
def test_vision_reducers_keep_the_cls_token_and_count(name: str, prefix: int) -> None:
    # A method that merges pairs halves the tokens at most; one that spreads places wants a square.
    shape = ReducerShape(tokens_in=16, tokens_out=9, prefix=prefix, scale=0.5, seed=3)
    reducer = VisionReducer(shape, load_method(name).selector(SITE, shape))
    torch.manual_seed(1)
    hidden, query = torch.randn(2, 16 + prefix, 8), torch.randn(2, 2, 16 + prefix, 4)
    feeds = {"hidden": hidden, "query": query, "key": torch.randn(2, 2, 16 + prefix, 4)}
    feeds["sizes"] = torch.ones(2, 16 + prefix)
    out, places, *_ = reducer(**{name: feeds[name] for name in reducer.inputs})
    assert out.shape == (2, 9 + prefix, 8)
    assert torch.equal(out[:, :prefix], hidden[:, :prefix])
    assert_raster(places, 16, 9)


def assert_raster(places: torch.Tensor, count: int, keep: int) -> None:
    """K different places below the count, ascending in every image."""
    assert places.shape[1] == keep
    for row in places.tolist():
        assert row == sorted(set(row))
        assert row[0] >= 0
        assert row[-1] < count


@pytest.mark.parametrize("name", methods_in("decoder"))
def test_decoder_reducers_keep_text_and_original_positions(name: str) -> None:
    runs, per_image, keep = [3, 2, 4], 9, 6
    before = place_tokens(runs, np.arange(9), 9, per_image)
    after = place_tokens(runs, before.text, len(before.order), keep)
    shape = ReducerShape(per_image, keep, 0, 1.0, 0)
    reducer = DecoderReducer(shape, load_method(name).selector(Site("decoder", 2), shape))
    length = len(before.order)
    torch.manual_seed(2)
    hidden = torch.randn(1, length, 4)
    feeds = {
        "hidden": hidden,
        "query": torch.randn(1, 4, length, 3),
        "key": torch.randn(1, 2, length + 5, 3),
        "position_ids": torch.arange(length)[None],
        "visual_index": torch.from_numpy(before.visual),
        "order": torch.from_numpy(after.order),
        "text_index": torch.from_numpy(before.text),
        "text_embeds": torch.randn(1, 9, 4),
        "visual_embeds": torch.randn(2, per_image + 3, 4),
    }
    out, positions, places = reducer(**{name: feeds[name] for name in reducer.inputs})
    assert out.shape == (1, 9 + 2 * keep, 4)
    assert torch.equal(out[0, after.text], hidden[0, before.text])
    assert_raster(places, per_image, keep)
    kept = positions[0].numpy()
    assert kept[after.text].tolist() == before.text.tolist()
    assert kept.tolist() == sorted(kept.tolist()), "order of the sequence is kept"
    for image in range(2):
        assert kept[after.visual[image]].tolist() == before.visual[image][places[image]].tolist()


def test_random_is_the_same_for_a_seed_and_differs_between_sites_and_seeds() -> None:
    method = load_method("random")

    def places(site: Site, seed: int) -> list[int]:
        return method.selector(site, ReducerShape(100, 30, 0, 1.0, seed)).places.tolist()

    assert places(SITE, 1) == places(SITE, 1)
    assert places(SITE, 1) != places(SITE, 2)
    assert places(SITE, 1) != places(Site("vision", 4), 1)


def test_an_unknown_method_lists_the_known() -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown method 'x'; known: .*illava, illava_v1, image_text, local, none, .*random",
    ):
        load_method("x")
