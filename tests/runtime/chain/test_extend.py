"""Several rows behind a filled cache: as one at a time, whatever the dialect; taken back by length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import build_tiny, made_once
from lvlm_runtime import LvlmError, Session
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.graphs.reader import read_model

CPU = {"backend": "onnxruntime", "device": "cpu", "threads": 1}
NEXT = [4, 8, 6, 9, 5]


@pytest.fixture(scope="module")
def sized(shared: Path) -> Path:
    """A decomposed bundle whose decoder counts the sizes of merged tokens, with a split head."""
    import tiny

    with made_once(shared / "tiny_sized") as part:
        if part is not None:
            options = {"target": "trt", "dialect": "decomposed", "lm_head_splits": 2}
            checkpoint = tiny.llava(part / "checkpoint")
            build_tiny(checkpoint, part / "bundle", 0.5, method="local", **options)
    return shared / "tiny_sized"


@pytest.fixture(params=["tiny_llava", "sized"])
def chain(request: pytest.FixtureRequest) -> Chain:
    directory: Path = request.getfixturevalue(request.param)
    return Session.open(directory / "bundle", **CPU).chain  # type: ignore[arg-type]


def filled(chain: Chain, ratio: float, answer: int = 12) -> tuple[DecodeState, np.ndarray]:
    """A picture and some text in the caches."""
    budget = chain.bundle.budget(ratio)
    first = read_model(chain.bundle.path(chain.manifest.vision[0].graph)).graph
    size = first.inputs[0].dims[-2:]
    pixels = np.random.default_rng(3).normal(size=(1, 3, *size)).astype(np.float32)
    visual = chain.encode(pixels, budget, budget.layouts[0], Recorder())
    return chain.prefill([[5, 6], [7, 8, 9]], visual, budget.layouts[0], answer, Recorder())


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_rows_behind_a_cache_are_as_one_at_a_time(chain: Chain, ratio: float) -> None:
    one, _ = filled(chain, ratio)
    expected = [chain.step(one, token, Recorder()) for token in NEXT]
    many, _ = filled(chain, ratio)
    got = chain.extend(many, NEXT, Recorder(), every_row=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert many.position == one.position
    assert [g.length for g in many.groups] == [g.length for g in one.groups]
    last, _ = filled(chain, ratio)
    assert chain.extend(last, NEXT, Recorder()).shape == (1, chain.manifest.text.vocab_size)


def test_rows_taken_back_leave_nothing_behind(chain: Chain) -> None:
    state, _ = filled(chain, 0.5)
    expected = chain.extend(state, NEXT, Recorder(), every_row=True)
    state.roll_back(len(NEXT), chain.backend)
    chain.extend(state, [11, 3, 10], Recorder())
    state.roll_back(3, chain.backend)
    got = chain.extend(state, NEXT, Recorder(), every_row=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_sizes_end_where_the_rows_do(sized: Path) -> None:
    """A token behind rows that were taken back does not weigh what a merged one did there."""
    chain = Session.open(sized / "bundle", **CPU).chain  # type: ignore[arg-type]
    state, _ = filled(chain, 0.5)
    group = state.groups[0]
    length = group.length
    before = chain.backend.fetch(group.size_bias)
    assert before.any(), "merged tokens stand for several patches"
    group.truncate(2, chain.backend)
    assert not chain.backend.fetch(group.size_bias).any()
    group.length = length
    group.count_sizes(2, np.exp(before[0, 2:length]), chain.backend)
    np.testing.assert_allclose(chain.backend.fetch(group.size_bias), before, rtol=1e-6)
    with pytest.raises(ValueError, match=r"99 rows are to stay of \d+"):
        group.truncate(99, chain.backend)


def test_rows_that_do_not_fit_are_refused_before_anything_runs(chain: Chain) -> None:
    state, _ = filled(chain, 0.5, answer=4)
    lengths = [group.length for group in state.groups]
    with pytest.raises(LvlmError, match=r"5 tokens behind \d+ do not fit into a cache of \d+ rows"):
        chain.extend(state, NEXT, Recorder())
    assert [group.length for group in state.groups] == lengths
