"""Both releases of iLLaVA: published counts, and their numpy statements against module and graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import numpy_methods
import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.export import export_graph
from lvlm_export.graphs.reducers import make_reducer, reducer_inputs
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan
from lvlm_export.reduction import load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.illava import equal_log_steps
from lvlm_export.reduction.selectors import Clues
from lvlm_export.reduction.selectors.illava import RecycleRedundant, recycling_count
from lvlm_runtime.prompt.sequence import place_tokens

RELEASES = {"illava": numpy_methods.illava, "illava_v1": numpy_methods.illava_v1}
Rows = NDArray[np.float64]


def tensor(rows: NDArray[np.floating]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def draw(seed: int, batch: int, count: int, width: int) -> tuple[Rows, Rows]:
    """Tokens, and scores without a tie: the smallest step is 1 / count."""
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.permutation(count) / count for _ in range(batch)])
    return generator.standard_normal((batch, count, width)), scores


def test_published_shares_and_the_recycling_tokens() -> None:
    """METHODS §2.6: 0.85 and 0.9 at four layers each; a twentieth of what stays, one at least."""
    whole = 729
    for keep in (0.85, 0.85, 0.85, 0.85, 0.9, 0.9, 0.9, 0.9):
        whole = round(whole * keep)
    assert whole == 250
    assert equal_log_steps(729, 381, 4) == (620, 527, 448, 381)
    assert equal_log_steps(5, 5, 3) == (5, 5, 5)
    assert [recycling_count(keep) for keep in (1, 20, 29, 381, 620)] == [1, 1, 1, 19, 31]


@pytest.mark.parametrize("group", [1, 4])
@given(
    groups=st.integers(1, 12),
    share=st.floats(0.01, 1.0),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_recycling_equals_the_numpy_statement(
    group: int, groups: int, share: float, width: int, seed: int
) -> None:
    keep = group * max(1, round(share * groups))
    tokens, scores = draw(seed, 2, group * groups, width)
    if group > 1:
        # Means of groups may tie where single scores do not.
        scores += np.repeat(np.random.default_rng(seed).random((2, groups)), group, axis=1)
    got, places = RecycleRedundant(keep, "received", group)(
        tensor(tokens), Clues(scores=tensor(scores))
    )
    for image in range(2):
        expected_places, expected = numpy_methods.illava(tokens[image], scores[image], keep, group)
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)
        starts = places[image].reshape(-1, group)
        assert (starts == starts[:, :1] + torch.arange(group)).all(), "groups stay whole"


def test_a_recycling_token_takes_its_nearest_and_the_others_stay_as_they_are() -> None:
    """By hand: the weakest of two that stay takes in both that leave, the likest most."""
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [4.0, 0.0]]])
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.4]])
    got, places = RecycleRedundant(2, "received")(tokens, Clues(scores=scores))
    assert places.tolist() == [[0, 3]]
    # Both have no product with the token that takes them in, so each counts half.
    torch.testing.assert_close(got[0], torch.tensor([[0.5, 0.75], [4.0, 0.0]]))
    nearer = torch.tensor([[[1.0, 0.0], [2.0, 2.0], [0.0, 1.0], [4.0, 0.0]]])
    weights = torch.softmax(torch.tensor([2.0, 0.0]) / 2**0.5, dim=0)
    mean = weights[0] * nearer[0, 1] + weights[1] * nearer[0, 2]
    got, _ = RecycleRedundant(2, "received")(nearer, Clues(scores=scores))
    torch.testing.assert_close(got[0, 0], (nearer[0, 0] + mean) / 2)


def test_keeping_everything_changes_nothing() -> None:
    tokens, scores = draw(0, 2, 12, 5)
    got, places = RecycleRedundant(12, "received")(tensor(tokens), Clues(scores=tensor(scores)))
    assert torch.equal(got, tensor(tokens))
    assert places.tolist() == [list(range(12))] * 2


def test_a_count_of_no_whole_groups_is_refused() -> None:
    with pytest.raises(AssertionError, match="30 tokens are no whole groups of 4"):
        RecycleRedundant(30, "received", group=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny.llava(tmp_path_factory.mktemp("tiny") / "llava"))


def softmax(logits: Rows) -> Rows:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def graph_of(plan: Plan, site: str, path: Path) -> tuple[Any, ort.InferenceSession]:
    """A site's module and its graph in ONNX Runtime."""
    budget = plan.budgets[0]
    counts = (*budget.vision, *budget.layouts[0].counts)
    reducer = make_reducer(plan, next(count for count in counts if count.site.name == site))
    arguments, signature = reducer_inputs(plan, reducer, torch.float32)
    export_graph(reducer, arguments, signature, path, {}, None)
    return reducer, ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("release", RELEASES)
def test_graphs_equal_the_numpy_statement(
    release: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """From query and key on: the scores are stated here as well, in float64."""
    plan = make_plan(checkpoint, BuildOptions((0.33,), method=release))
    generator = np.random.default_rng(6)
    for site in ("vision@1", plan.budgets[0].layouts[0].decoder[-1].site.name):
        reducer, session = graph_of(plan, site, tmp_path / f"{site}.onnx")
        shape, vision = reducer.shape, plan.shape.vision
        noise = lambda *size: generator.standard_normal(size, dtype=np.float32)  # noqa: E731
        if site.startswith("vision"):
            rows, dim = shape.prefix + shape.tokens_in, vision.hidden_size // vision.heads
            hidden, query, key = (
                noise(2, rows, vision.hidden_size),
                *noise(2, 2, vision.heads, rows, dim),
            )
            feeds = {"hidden": hidden, "query": query, "key": key}
            attention = softmax(query.astype(np.float64) @ key.swapaxes(-1, -2) * shape.scale)
            scores = attention.mean(axis=(1, 2))[:, shape.prefix :]
            tokens = hidden[:, shape.prefix :]
        else:
            text = plan.shape.text
            before = place_tokens([3, 2, 4], np.arange(9), 9, shape.tokens_in)
            after = place_tokens([3, 2, 4], before.text, len(before.order), shape.tokens_out)
            rows = len(before.order)
            hidden = noise(1, rows, text.hidden_size)
            query = noise(1, text.heads, rows, text.head_dim)
            key = noise(1, text.kv_heads, rows + 5, text.head_dim)
            feeds = {
                "hidden": hidden,
                "query": query,
                "key": key,
                "position_ids": np.arange(rows)[None],
                "visual_index": before.visual,
                "order": after.order,
            }
            keys = key[0, :, :rows].repeat(text.heads // text.kv_heads, axis=0)
            logits = np.einsum("hd,hrd->hr", query[0, :, -1].astype(np.float64), keys)
            scores = softmax(logits * shape.scale).mean(axis=0)[before.visual]
            tokens = hidden[0][before.visual]
        got = dict(zip(reducer.outputs, session.run(None, feeds), strict=True))
        reduced = got["hidden_out"]
        kept = reduced[:, shape.prefix :] if shape.prefix else reduced[0][after.visual]
        for image in range(2):
            # A premise, of scores near 0.03: none are so near that float32 could exchange them.
            assert np.diff(np.sort(scores[image])).min() > 1e-7
            places, expected = RELEASES[release](
                tokens[image].astype(np.float64), scores[image], shape.tokens_out
            )
            assert got["places"][image].tolist() == places
            np.testing.assert_allclose(kept[image], expected, atol=1e-5)


def test_a_site_is_ranked_by_what_it_has() -> None:
    """Attention received in the tower, the last text token's row in the decoder; both releases."""
    for release in RELEASES:
        method, shape = load_method(release), ReducerShape(16, 8, 0, 0.5, 0)
        kinds = [
            method.selector(Site(stage, 3), shape).attention for stage in ("vision", "decoder")
        ]
        assert kinds == ["received", "last_row"]
