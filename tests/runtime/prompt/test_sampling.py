"""Sampling against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.prompt.sampling import Sampler, SamplingOptions

logits = hnp.arrays(
    np.float32, st.integers(2, 60), elements=st.integers(-400, 400).map(lambda i: i / 16)
)


def of_transformers(
    scores: np.ndarray, history: list[int], options: SamplingOptions
) -> torch.Tensor:
    """The logits after the processors of ``generate``, in its order."""
    processors = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature > 0:
        processors.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k is not None:
            processors.append(TopKLogitsWarper(options.top_k))
        if options.top_p is not None and options.top_p < 1:
            processors.append(TopPLogitsWarper(options.top_p))
    return processors(torch.tensor([history]), torch.from_numpy(scores)[None])[0]


@given(
    logits,
    st.lists(st.integers(0, 100), min_size=1, max_size=8),
    st.sampled_from([0.25, 0.7, 1.0, 2.0]),
    st.none() | st.integers(1, 70),
    st.none() | st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    st.sampled_from([1.0, 0.8, 1.3]),
)
def test_scores_are_those_of_transformers(
    scores: np.ndarray,
    history: list[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    penalty: float,
) -> None:
    options = SamplingOptions(temperature, top_k, top_p, penalty)
    ours = torch.from_numpy(Sampler(options).scores(scores, history))
    theirs = of_transformers(scores, history, options)
    finite = torch.isfinite(theirs)
    # tokens of one score may stay or go in another order: compare what stays as a multiset
    assert torch.isfinite(ours).sum() == finite.sum()
    assert torch.equal(ours.sort().values, theirs.sort().values)


@given(logits, st.lists(st.integers(0, 59), min_size=1, max_size=8))
def test_greedy_is_the_first_largest_after_the_penalty(
    scores: np.ndarray, history: list[int]
) -> None:
    options = SamplingOptions(repetition_penalty=1.2)
    theirs = of_transformers(scores, history, options)
    assert Sampler(options).sample(scores, history) == int(torch.argmax(theirs))


def test_the_same_seed_draws_the_same_tokens() -> None:
    scores = np.linspace(0, 1, 50, dtype=np.float32)
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler(SamplingOptions(1.0, seed=seed))
        runs.append([sampler.sample(scores, []) for _ in range(20)])
    assert runs[0] == runs[1] != runs[2]


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.3, 0.2, 0.0])
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities)
    sampler = Sampler(SamplingOptions(1.0, seed=0))
    counts = np.bincount([sampler.sample(scores, []) for _ in range(4000)], minlength=4)
    assert counts[3] == 0
    np.testing.assert_allclose(counts / 4000, probabilities, atol=0.03)


def test_the_logits_of_the_caller_stay_as_they_are() -> None:
    scores = np.ones(4, dtype=np.float32)
    Sampler(SamplingOptions(0.5, 2, 0.5, 1.5, 0)).sample(scores, [1])
    assert scores.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1; give 0 \(greedy\) or above"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; give a whole number, 1 or above"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; give a number above 0 and at most 1"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.0; give a number above 0 \(1 is"),
        ({"seed": -1}, "seed is -1; give a whole number, 0 or above"),
        ({"seed": True}, "seed is True"),
        ({"top_k": 5}, r"no effect at temperature 0 \(greedy\)"),
        ({"top_p": 0.5}, r"no effect at temperature 0 \(greedy\)"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingOptions(**values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(value: float, temperature: float) -> None:
    with pytest.raises(LvlmError, match=r"largest logit is .* a finite number is needed"):
        Sampler(SamplingOptions(temperature)).sample(np.full(5, value, np.float32), [])


def test_logits_of_another_shape_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"logits must be \[V\], got shape \(1, 5\)"):
        Sampler(SamplingOptions()).sample(np.zeros((1, 5), np.float32), [])
