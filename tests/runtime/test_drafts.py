"""Drafts: what they propose, and that no answer changes by them, whatever the model says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_runtime import SamplingOptions, UsageError
from lvlm_runtime.answering import AnswerLoop, drafts_of
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.prompt.drafts import NgramDrafts, parse_speculation
from lvlm_runtime.prompt.sampling import Sampler

WORDS = 6


@dataclass
class FakeChain:
    """A model whose logits are a function of the last two tokens, over a cache that is a list."""

    seed: int
    ids: list[int]
    backend: Any = None
    calls: int = 0

    def logits(self, ids: list[int]) -> np.ndarray:
        key = [self.seed, *ids[-2:]]
        return np.random.default_rng(key).normal(size=WORDS).astype(np.float32) * 3

    def extend(
        self, state: FakeState, tokens: list[int], recorder: Recorder, every_row: bool = False
    ) -> np.ndarray:
        self.calls += 1
        rows = []
        for token in tokens:
            state.ids.append(token)
            rows.append(self.logits(state.ids))
        return np.stack(rows if every_row else rows[-1:])


@dataclass
class FakeState:
    """A cache that is a list."""

    ids: list[int] = field(default_factory=list)

    def roll_back(self, rows: int, backend: Any) -> None:
        del self.ids[len(self.ids) - rows :]


class Silent:
    """A detokeniser without text."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def answer(prompt: list[int], seed: int, options: SamplingOptions, draft: int, length: int) -> Any:
    """Tokens, the cache behind them and the calls."""
    chain, state = FakeChain(seed, prompt), FakeState(list(prompt))
    drafts = drafts_of(draft, image_token_id=WORDS)
    parts: tuple[Any, ...] = (
        chain,
        Sampler(options),
        Silent(),
        (0,),
        length,
        Recorder(),
        drafts,
    )
    loop = AnswerLoop(*parts)
    for _ in loop.run(state, chain.logits(prompt), list(prompt)):  # type: ignore[arg-type]
        pass
    return loop.token_ids, state.ids, chain.calls, loop


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(1, WORDS - 1), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    draft=st.integers(1, 15),
    length=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    penalty=st.sampled_from([None, 1.3]),
)
def test_drafts_change_no_token_and_leave_the_same_cache(
    prompt: list[int], seed: int, draft: int, length: int, temperature: float, penalty: float | None
) -> None:
    options = SamplingOptions(temperature=temperature, seed=seed, repetition_penalty=penalty)
    plain, cache, calls, _ = answer(prompt, seed, options, 0, length)
    tokens, drafted_cache, drafted_calls, loop = answer(prompt, seed, options, draft, length)
    assert tokens == plain
    assert drafted_cache == cache == [*prompt, *plain[:-1]]
    assert calls == len(plain) - 1
    assert drafted_calls == calls - loop.accepted == loop.calls


def test_drawn_tokens_have_the_distribution_of_the_model() -> None:
    """With seeds that have nothing to do with one another, by a chi-squared bound."""
    prompt, seeds = [1, 2, 3, 1, 2], 3000
    counts = np.zeros((2, WORDS))
    for kind, draft in enumerate((0, 4)):
        for seed in range(seeds):
            options = SamplingOptions(temperature=1.0, seed=seed + kind * seeds)
            tokens, *_ = answer(prompt, 5, options, draft, 2)
            counts[kind, tokens[-1]] += 1
    together = counts.sum(axis=0)
    seen = together > 0
    statistic = (((counts - together / 2) ** 2)[:, seen] / (together[seen] / 2)).sum()
    assert statistic < 20.5, "99.9 % point at five degrees of freedom"


def test_what_followed_the_last_tokens_is_proposed() -> None:
    drafts = NgramDrafts(4, frozenset({9}))
    assert drafts.propose([1, 2, 3], 9) == []
    assert drafts.propose([1, 2, 3, 5, 1, 2], 9) == [3, 5, 1, 2]
    assert drafts.propose([1, 2, 3, 5, 1, 2, 4, 1, 2], 9) == [4, 1, 2], "where it stood last"
    assert drafts.propose([1, 2, 3, 5, 1, 2, 4, 1, 2], 1) == [4]
    pictures = NgramDrafts(4, frozenset({9}))
    assert pictures.propose([1, 2, 3, 9, 9, 9, 2], 9) == [3], "never what stands for a picture"


@pytest.mark.parametrize("text", ["ngram", "ngram:0", "ngram:16", "draft:4", "ngram:-1", "4"])
def test_another_speculation_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot speculate with .*; write ngram:K with"):
        parse_speculation(text)
