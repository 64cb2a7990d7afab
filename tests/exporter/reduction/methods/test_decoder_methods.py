"""Methods that act in the decoder: published points, counts, and their numpy statements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import numpy_methods
from lvlm_export.reduction import load_method
from lvlm_export.reduction.budget import Geometry
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.dart import pivot_quotas
from lvlm_export.reduction.methods.uniform import even_places
from lvlm_export.reduction.methods.vtw import choose_layer, kl_divergence
from lvlm_export.reduction.schedule import plan_budget
from lvlm_export.reduction.selectors import Clues
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image import anyres


def llava(tokens: int = 576, vision: int = 23, text: int = 32) -> Geometry:
    return Geometry(vision, tokens, text, (anyres.IMAGE_LAYOUT,), False, lambda _layout, kept: kept)


def counts(method: str, ratio: float, geometry: Geometry | None = None) -> list[tuple[str, int]]:
    budget = plan_budget(ratio, load_method(method), geometry or llava())
    return [(count.site.name, count.tokens_out) for count in budget.layouts[0].decoder]


def selector(method: str, tokens: int, keep: int) -> torch.nn.Module:
    shape = ReducerShape(tokens, keep, 0, 1.0, 0)
    return load_method(method).selector(Site("decoder", 2), shape)


def test_published_points() -> None:
    assert counts("fastv", 0.5) == [("decoder@2", 288)]
    pyramid = [("decoder@8", 288), ("decoder@16", 144), ("decoder@24", 72)]
    assert counts("pyramiddrop", 0.125) == pyramid
    assert counts("vtw", 0.5) == [("decoder@16", 0)]
    assert counts("dart", 124 / 576) == [("decoder@2", 124)]
    assert pivot_quotas(124) == (15,) * 8


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("keep", [1, 7, 20])
def test_best_attended_stay_untouched(method: str, keep: int) -> None:
    rng = np.random.default_rng(keep)
    tokens, scores = rng.standard_normal((3, 20, 6)), rng.random((3, 20))
    got, places = selector(method, 20, keep)(
        torch.tensor(tokens), Clues(scores=torch.tensor(scores, dtype=torch.float32))
    )
    for image in range(3):
        expected = numpy_methods.best(scores[image], keep)
        assert places[image].tolist() == expected
        np.testing.assert_array_equal(got[image].numpy(), tokens[image][expected])


@pytest.mark.parametrize("keep", [4, 5, 12, 21, 30])
def test_dart_equals_the_numpy_statement(keep: int) -> None:
    rng = np.random.default_rng(keep)
    tokens, keys = rng.standard_normal((2, 30, 8)), rng.standard_normal((2, 30, 12))
    text, text_keys = rng.standard_normal((7, 8)), rng.standard_normal((7, 12))
    as_tensor = lambda rows: torch.tensor(rows, dtype=torch.float32)  # noqa: E731
    # The loudest words stand before an image, where the authors' code does not look.
    text_keys[:2] *= 100
    after = np.arange(7) >= np.array([[2], [3]])
    clues = Clues(
        keys=as_tensor(keys),
        text=as_tensor(text),
        text_keys=as_tensor(text_keys),
        text_after=torch.tensor(after),
    )
    got, places = selector("dart", 30, keep)(as_tensor(tokens), clues)
    for image in range(2):
        words, word_keys = text[after[image]], text_keys[after[image]]
        expected = numpy_methods.dart(tokens[image], keys[image], words, word_keys, keep)
        assert places[image].tolist() == expected
        np.testing.assert_allclose(got[image].numpy(), tokens[image][expected], rtol=1e-6)


def test_dart_does_not_care_for_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    tokens, keys = torch.randn(1, 30, 8), torch.randn(1, 30, 12)
    text, text_keys, order = torch.randn(7, 8), torch.randn(7, 12), torch.randperm(30)
    choose = selector("dart", 30, 14)
    said = {"text": text, "text_keys": text_keys, "text_after": torch.ones(1, 7, dtype=torch.bool)}
    _, plain = choose(tokens, Clues(keys=keys, **said))
    _, moved = choose(tokens[:, order], Clues(keys=keys[:, order], **said))
    assert sorted(order[moved[0]].tolist()) == plain[0].tolist()


def test_dart_takes_the_loudest_words_before_the_image_where_too_few_stand_after_it() -> None:
    torch.manual_seed(0)
    tokens, keys, text = torch.randn(1, 30, 8), torch.randn(1, 30, 12), torch.randn(7, 8)
    text_keys = torch.randn(7, 12)
    choose = selector("dart", 30, 14)
    first, *others = text_keys[:5].abs().sum(dim=-1).topk(3).indices.tolist()
    after = torch.tensor([[False] * 5 + [True] * 2])
    _, got = choose(tokens, Clues(keys=keys, text=text, text_keys=text_keys, text_after=after))
    # The two after it by their norm, then the two loudest before it.
    last = text_keys[5:].abs().sum(dim=-1).topk(2).indices + 5
    words = [*last.tolist(), first, others[0]]
    places = numpy_methods.dart(
        tokens[0].numpy(), keys[0].numpy(), text[words].numpy(), _ranked(text_keys[words]), 14
    )
    assert got[0].tolist() == places


def _ranked(rows: torch.Tensor) -> np.ndarray:
    """Keys whose norms fall row by row."""
    return np.ones(rows.shape) * np.arange(len(rows), 0, -1)[:, None]


@pytest.mark.parametrize(("count", "keep"), [(36, 12), (36, 36), (729, 1), (10, 7)])
def test_uniform_places_are_even(count: int, keep: int) -> None:
    places = even_places(count, keep)
    assert len(set(places)) == keep
    assert places == sorted(places)
    gaps = np.diff([-1, *places, count])
    assert gaps[1:-1].max(initial=1) - gaps[1:-1].min(initial=count) <= 1
    assert abs(gaps[0] - gaps[-1]) <= 1


@pytest.mark.parametrize("ratio", [0.1, 0.33, 0.5, 0.9])
def test_vtw_withdraws_where_the_mean_is_the_ratio(ratio: float) -> None:
    budget = plan_budget(ratio, load_method("vtw"), llava())
    (count,) = budget.layouts[0].decoder
    assert (count.tokens_in, count.tokens_out) == (576, 0)
    mean = 576 * count.site.layer / 32
    assert mean / 576 == pytest.approx(ratio, abs=0.5 / 32)
    assert budget.layouts[0].achieved == mean / 576


def test_vtw_refuses_a_ratio_without_a_layer() -> None:
    with pytest.raises(
        UsageError, match=r"between 1 and 31 of 32 and ratio 0.99 is layer 32; .* 0.9688"
    ):
        plan_budget(0.99, load_method("vtw"), llava())
    with pytest.raises(UsageError, match=r"ratio 0.01 is layer 0; the nearest ratio .* is 0.03125"):
        plan_budget(0.01, load_method("vtw"), llava())


def test_vtw_search_takes_the_first_layer_below_the_limit() -> None:
    assert choose_layer({5: 0.4, 7: 0.0, 6: 0.002}, 0.003) == 6
    with pytest.raises(
        LvlmError, match=r"no layer reaches a divergence of 1e-09; the best is layer 6"
    ):
        choose_layer({5: 0.4, 6: 1e-5}, 1e-9)


def test_divergence_of_logits() -> None:
    full, far = [2.0, 0.0, 1.0], [0.0, 2.0, 1.0]
    assert kl_divergence(full, full) == 0
    p, q = np.exp(full) / np.exp(full).sum(), np.exp(far) / np.exp(far).sum()
    assert kl_divergence(full, far) == pytest.approx(float((q * np.log(q / p)).sum()))


def test_a_shallow_decoder_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="fastv needs a decoder layer after its site at layer 2"):
        plan_budget(0.5, load_method("fastv"), llava(text=2))
