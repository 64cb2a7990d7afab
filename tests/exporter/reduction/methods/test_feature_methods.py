"""Methods between the vision tower and the decoder: counts, refusals, numpy statements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import numpy_methods
from lvlm_export.reduction import load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.prumerge import adaptive_ratio
from lvlm_export.reduction.methods.prumerge_plus import spaced_places
from lvlm_export.reduction.methods.visionzip import split_budget
from lvlm_export.reduction.reducers import ProjectedReducer, VisionReducer
from lvlm_export.reduction.selectors import Clues, Selector
from lvlm_runtime.errors import UsageError

FEATURES = Site("features", 23)
PROJECTED = Site("projected", 0)


def tensor(rows: NDArray[np.float64]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def selector(method: str, site: Site, tokens: int, keep: int, prefix: int = 0) -> Selector:
    return load_method(method).selector(site, ReducerShape(tokens, keep, prefix, 0.5, 0))


def draw(seed: int, *shapes: tuple[int, ...]) -> list[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def test_published_counts() -> None:
    assert [split_budget(keep) for keep in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]
    assert selector("prumerge", FEATURES, 576, 73).salient == 72
    plus = selector("prumerge_plus", FEATURES, 576, 145)
    assert (plus.salient, len(plus.spaced)) == (72, 72)


@pytest.mark.parametrize("keep", [2, 7, 13, 25, 29])
def test_visionzip_equals_the_numpy_statement(keep: int) -> None:
    tokens, keys, noise = draw(keep, (2, 30, 6), (2, 30, 4), (2, 30))
    scores = np.exp(noise)
    clues = Clues(scores=tensor(scores), mean_keys=tensor(keys))
    got, places = selector("visionzip", FEATURES, 30, keep)(tensor(tokens), clues)
    for image in range(2):
        args = tokens[image], scores[image], keys[image]
        expected_places, expected = numpy_methods.visionzip(*args, *split_budget(keep))
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)


def test_visionzip_counts_the_cls_token_among_the_dominant() -> None:
    (hidden,) = draw(1, (2, 31, 8))
    query, key = map(tensor, draw(2, (2, 2, 31, 4), (2, 2, 31, 4)))
    shape = ReducerShape(30, 13, 1, 0.5, 0)
    reducer = VisionReducer(shape, load_method("visionzip").selector(FEATURES, shape))
    out, places = reducer(tensor(hidden), query, key)
    assert out.shape == (2, 1 + 13, 8), "the projector drops the first and takes 13"
    assert torch.equal(out[:, 0], out[:, 1])
    assert places[:, 0].tolist() == [-1, -1]
    attention = torch.softmax(query[:, :, 0:1] @ key.mT * 0.5, dim=-1).mean(dim=1)[:, 0, 1:]
    for image in range(2):
        args = hidden[image, 1:], attention[image].numpy(), key[image, :, 1:].mean(dim=0).numpy()
        expected_places, expected = numpy_methods.visionzip(
            *args, split_budget(13)[0] - 1, split_budget(13)[1]
        )
        assert places[image, 1:].tolist() == expected_places
        np.testing.assert_allclose(out[image, 2:].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 8, 20])
def test_image_text_keeps_what_is_most_like_the_cls_token(keep: int) -> None:
    tokens, cls = draw(keep, (2, 20, 6), (2, 6))
    choose = selector("image_text", FEATURES, 20, keep, prefix=1)
    got, places = choose(tensor(tokens), Clues(cls=tensor(cls)))
    for image in range(2):
        like = np.array([numpy_methods.cosine(cls[image], token) for token in tokens[image]])
        expected = numpy_methods.best(like, keep)
        assert places[image].tolist() == expected
        assert torch.equal(got[image], tensor(tokens)[image][expected])


@pytest.mark.parametrize("method", ["prumerge", "prumerge_plus"])
@pytest.mark.parametrize("keep", [1, 2, 6, 20])
def test_prumerge_equals_the_numpy_statement(method: str, keep: int) -> None:
    tokens, keys, noise = draw(keep, (2, 40, 6), (2, 40, 8), (2, 40))
    scores = np.exp(noise) / 40
    clues = Clues(scores=tensor(scores), keys=tensor(keys))
    got, places = selector(method, FEATURES, 40, keep)(tensor(tokens), clues)
    spaced = spaced_places(40, keep) if method == "prumerge_plus" else []
    for image in range(2):
        left = np.where(np.isin(np.arange(40), spaced), -1.0, scores[image])
        kept = sorted({*spaced, *numpy_methods.best(left, keep - 1 - len(spaced))})
        assert places[image].tolist() == [*kept, -1]
        expected = numpy_methods.prumerge(tokens[image], scores[image], keys[image], kept)
        np.testing.assert_allclose(got[image].numpy(), expected, atol=2e-5)


def test_adaptive_ratio_is_the_mean_of_what_the_rule_keeps() -> None:
    """Long-tailed rows, as attention is; the appended token comes on top."""
    rows = np.exp(1.5 * draw(0, (6, 576))[0])
    shares = [numpy_methods.outlier_share(row) + 1 / 576 for row in rows]
    assert len(set(shares)) > 1
    assert adaptive_ratio(rows.tolist()) == pytest.approx(float(np.mean(shares)))
    assert adaptive_ratio([[1.0] * 36]) == 1 / 36, "no outlier: the appended token alone"


def test_adaptive_ratio_needs_pictures() -> None:
    for rows in ([], [[1.0]]):
        with pytest.raises(UsageError, match="needs sample pictures of two patches or more"):
            adaptive_ratio(rows)


@pytest.mark.parametrize("keep", [1, 2, 9, 20])
def test_divprune_equals_the_numpy_statement(keep: int) -> None:
    (tokens,) = draw(keep, (2, 20, 6))
    got, places = selector("divprune", PROJECTED, 20, keep)(tensor(tokens), Clues())
    for image in range(2):
        assert places[image].tolist() == numpy_methods.divprune(tokens[image], keep)
        np.testing.assert_array_equal(got[image], tensor(tokens)[image][places[image]])


@pytest.mark.parametrize("keep", [1, 2, 6, 12])
def test_cdpruner_equals_the_numpy_statement(keep: int) -> None:
    """Kept tokens below and above the rank of the tokens, 8."""
    tokens, text = draw(keep, (2, 20, 8), (5, 8))
    _, places = selector("cdpruner", PROJECTED, 20, keep)(tensor(tokens), Clues(text=tensor(text)))
    for image in range(2):
        assert places[image].tolist() == numpy_methods.cdpruner(tokens[image], text, keep)


@pytest.mark.parametrize("keep", [3, 8, 15, 20])
def test_of_equal_tokens_cdpruner_takes_the_first_and_the_others_last(keep: int) -> None:
    """Newlines of packed tiles are equal; rounding must not decide which of them stays."""
    (tokens, text) = draw(4, (1, 20, 12), (5, 12))
    tokens[0, [11, 15, 19]] = tokens[0, 7]
    _, places = selector("cdpruner", PROJECTED, 20, keep)(tensor(tokens), Clues(text=tensor(text)))
    kept = places[0].tolist()
    assert kept == numpy_methods.cdpruner(tokens[0], text, keep)
    assert set(kept).isdisjoint({11, 15, 19}) or keep > 17


@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_greedy_choice_does_not_care_for_the_order_of_tokens(method: str) -> None:
    tokens, text = map(tensor, draw(3, (1, 24, 16), (5, 16)))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    choose = selector(method, PROJECTED, 24, 9)
    _, plain = choose(tokens, Clues(text=text))
    _, moved = choose(tokens[:, order], Clues(text=text))
    assert sorted(order[moved[0]].tolist()) == plain[0].tolist()


def test_divprune_takes_one_of_equal_tokens() -> None:
    """Newlines of packed tiles are equal; one of them stands for all."""
    (tokens,) = draw(5, (1, 12, 6))
    tokens[0, 8:] = tokens[0, 7]
    _, places = selector("divprune", PROJECTED, 12, 8)(tensor(tokens), Clues())
    assert sum(place >= 7 for place in places[0].tolist()) == 1


@pytest.mark.parametrize("method", ["divprune", "cdpruner"])
def test_a_projected_reducer_takes_text_only_where_it_is_asked_for(method: str) -> None:
    shape = ReducerShape(20, 7, 0, 1.0, 0)
    reducer = ProjectedReducer(shape, load_method(method).selector(PROJECTED, shape))
    visual, text = map(tensor, draw(6, (3, 20, 8), (1, 5, 8)))
    feeds = {"visual": visual, "text": text}
    out, places = reducer(*(feeds[name] for name in reducer.inputs))
    assert out.shape == (3, 7, 8)
    assert places.shape == (3, 7)
    assert reducer.inputs == (("visual",) if method == "divprune" else ("visual", "text"))


@pytest.mark.parametrize(
    ("method", "site"), [("visionzip", FEATURES), ("prumerge", FEATURES), ("divprune", PROJECTED)]
)
def test_images_of_a_batch_do_not_touch(method: str, site: Site) -> None:
    tokens, keys, noise = map(tensor, draw(7, (3, 20, 8), (3, 20, 8), (3, 20)))
    choose = selector(method, site, 20, 9)
    together, _ = choose(tokens, Clues(scores=noise.exp(), keys=keys, mean_keys=keys))
    for image in range(3):
        own = slice(image, image + 1)
        clues = Clues(scores=noise[own].exp(), keys=keys[own], mean_keys=keys[own])
        torch.testing.assert_close(choose(tokens[own], clues)[0], together[own])
