"""Rules of generation_config.json against the logits processors that ``generate`` makes of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lvlm_runtime.bundle.generation import generation_record
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.rules import (
    NO_RULES,
    AnswerLimits,
    GenerationRules,
    apply_rules,
    checked_rules,
)
from lvlm_runtime.prompt.sampling import Sampler, SamplingOptions

VOCAB, STOPS = 24, (3, 7)
PROMPT = [1, 5, 9, 9, 9, 5, 9, 2]
MAX_NEW = 12


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


ids = st.integers(0, VOCAB - 1)
# transformers refuses a configuration that suppresses a stop id and forces it.
few = st.lists(ids.filter(lambda token: token not in STOPS), max_size=3).map(tuple)
sequences = st.lists(ids, min_size=1, max_size=3).map(tuple)
some_rules = st.builds(
    GenerationRules,
    sequence_bias=st.dictionaries(sequences, st.sampled_from([-2.0, 0.5, 3.0]), max_size=3).map(
        lambda biases: tuple(biases.items())
    ),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.3]),
    no_repeat_ngram_size=st.integers(0, 4),
    bad_words_ids=st.lists(sequences, max_size=3, unique=True).map(tuple),
    min_length=st.integers(0, 15),
    min_new_tokens=st.integers(0, 6),
    forced_eos_token_id=st.sampled_from([(), (3,), (3, 7)]),
    exponential_decay_length_penalty=st.none() | st.tuples(st.integers(0, 6), st.just(1.5)),
    suppress_tokens=few,
    begin_suppress_tokens=st.lists(ids, max_size=3).map(tuple),
)


def settings_of(rules: GenerationRules) -> dict[str, Any]:
    """The rules in force as generation_config.json has them."""

    def plain(value: Any) -> Any:
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    content = {name: plain(getattr(rules, name)) for name in rules.in_force}
    if "min_new_tokens" in content:
        content.pop("min_length", None)
    return content


def processors(model: LlamaForCausalLM, content: dict[str, Any]) -> Any:
    """What ``generate`` applies under a generation_config.json."""
    config = GenerationConfig(**content, max_length=len(PROMPT) + MAX_NEW, eos_token_id=STOPS)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + len(PROMPT)
    model._prepare_special_tokens(config, True, device="cpu")
    return model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(PROMPT),
        encoder_input_ids=torch.tensor([PROMPT]),
    )


@settings(max_examples=200, deadline=None)
@given(rules=some_rules, answer=st.lists(ids, max_size=MAX_NEW - 1), seed=st.integers(0, 2**32 - 1))
def test_scores_are_those_of_transformers(
    model: LlamaForCausalLM, rules: GenerationRules, answer: list[int], seed: int
) -> None:
    scores = np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)
    history, limits = PROMPT + answer, AnswerLimits(len(PROMPT), MAX_NEW, STOPS)
    theirs = processors(model, settings_of(rules))(
        torch.tensor([history]), torch.from_numpy(scores.copy())[None]
    )[0]
    before = scores.copy()
    content = settings_of(rules)
    if "min_new_tokens" in content:
        rules = GenerationRules(**{**vars(rules), "min_length": 0})
    np.testing.assert_array_equal(apply_rules(rules, scores, history, limits), theirs.numpy())
    np.testing.assert_array_equal(scores, before)


CASES = {
    "no rule": {},
    "no pair twice": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "penalty": {"repetition_penalty": 1.7},
    "suppressed": {"suppress_tokens": (0, 4, 11), "begin_suppress_tokens": (12, 13)},
    "bad words": {"bad_words_ids": ((5,), (9, 2), (3,))},
    "at least so many": {"min_new_tokens": 9},
    "not before this length": {"min_length": len(PROMPT) + 9},
    "an end at the end": {"forced_eos_token_id": (7,)},
    "all at once": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": ((6, 6),),
        "min_new_tokens": 4,
        "suppress_tokens": (2,),
        "exponential_decay_length_penalty": (5, 1.2),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_greedy_answers_are_those_of_generate(name: str, model: LlamaForCausalLM) -> None:
    rules = GenerationRules(**CASES[name])
    config = GenerationConfig(
        **settings_of(rules), max_new_tokens=MAX_NEW, eos_token_id=STOPS, pad_token_id=0
    )
    expected = model.generate(torch.tensor([PROMPT]), generation_config=config)[0].tolist()
    sampler = Sampler(SamplingOptions(), rules, AnswerLimits(len(PROMPT), MAX_NEW, STOPS))
    said = list(PROMPT)
    while len(said) < len(PROMPT) + MAX_NEW and (said == PROMPT or said[-1] not in STOPS):
        with torch.no_grad():
            logits = model(torch.tensor([said])).logits[0, -1].numpy()
        said.append(sampler.sample(logits, said))
    assert said == expected


def test_what_the_user_chooses_counts_before_the_rules() -> None:
    scores, rules = np.array([1, 2, 3, 2.9], np.float32), GenerationRules(repetition_penalty=2.0)
    banned = GenerationRules(suppress_tokens=(2,))

    def first(options: SamplingOptions, rules: GenerationRules) -> int:
        return Sampler(options, rules).sample(scores, [2])

    assert first(SamplingOptions(), rules) == 3
    assert first(SamplingOptions(repetition_penalty=1.0), rules) == 2
    assert first(SamplingOptions(rules=False), rules) == 2
    assert first(SamplingOptions(repetition_penalty=2.0, rules=False), rules) == 3
    assert first(SamplingOptions(), banned) == 3
    assert first(SamplingOptions(rules=False), banned) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_leave_no_token_are_refused(temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature), GenerationRules(suppress_tokens=(0, 1, 9)))
    with pytest.raises(LvlmError, match=r"\(suppress_tokens\) leave no token to go on with; give"):
        sampler.sample(np.zeros(2, np.float32), [])


def test_only_rules_that_are_on_are_in_force() -> None:
    assert NO_RULES.in_force == ()
    rules = GenerationRules(min_new_tokens=1, suppress_tokens=(5,))
    assert rules.in_force == ("min_new_tokens", "suppress_tokens")


def test_an_end_that_is_put_off_for_ever_stays_a_number() -> None:
    """Behind 1,751 tokens a power of 1.5 is beyond float64, and Python's own raises an error."""
    rules = GenerationRules(exponential_decay_length_penalty=(0, 1.5))
    scores = np.array([2, -1, 0, -np.inf], np.float32)
    sampler = Sampler(SamplingOptions(1.0, seed=1), rules, AnswerLimits(1, None, (1, 2, 3)))
    for length in (100, 300, 5000):
        assert sampler.sample(scores, [0] * length) == 1
        assert sampler.scores(scores, [0] * length)[2:].tolist() == [0, -np.inf]


def test_rules_that_leave_no_number_are_refused() -> None:
    sampler = Sampler(SamplingOptions(), GenerationRules(repetition_penalty=1e-37))
    with pytest.raises(
        LvlmError, match=r"\(repetition_penalty\) make a score of inf, a finite num"
    ):
        sampler.sample(np.full(3, 99, np.float32), [1])
    several = (((0,), 3e38), ((0,), 3e38), ((1,), -3e38), ((1,), -3e38), ((1,), 3e38))
    sampler = Sampler(SamplingOptions(), GenerationRules(sequence_bias=several))
    with pytest.raises(LvlmError, match=r"\(sequence_bias\) make a score of "):
        sampler.sample(np.zeros(3, np.float32), [1])


numbers = st.integers(-(1 << 65), 1 << 65) | st.integers(-3, VOCAB + 3)
reals = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0.5, 2) | numbers
lists = st.lists(numbers | ids, max_size=3)
anything = st.none() | st.booleans() | numbers | reals | st.text(max_size=3) | st.lists(lists)
content = st.fixed_dictionaries(
    {
        "sequence_bias": st.lists(st.tuples(lists, reals).map(list), max_size=3),
        "repetition_penalty": reals,
        "no_repeat_ngram_size": numbers,
        "bad_words_ids": st.lists(lists, max_size=3),
        "min_length": numbers,
        "min_new_tokens": numbers,
        "forced_eos_token_id": lists,
        "exponential_decay_length_penalty": st.none() | st.tuples(numbers, reals).map(list),
        "suppress_tokens": lists,
        "begin_suppress_tokens": lists,
    }
)
# One rule that may be anything at all, the others off; or all of them of their types.
plain = {**json.loads(json.dumps(dataclasses.asdict(NO_RULES)))}
one_of_them = st.one_of(
    *(
        st.tuples(st.just(name), anything | content.map(lambda all_, n=name: all_[n]))
        for name in plain
    )
).map(lambda pair: {**plain, pair[0]: pair[1]})


@settings(max_examples=300, deadline=None)
@given(
    rules=one_of_them | content,
    history=st.lists(ids, max_size=MAX_NEW - 1),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_any_rules_give_a_token_or_one_line(
    rules: dict[str, Any], history: list[int], seed: int, temperature: float
) -> None:
    file = {"rules": rules, "left_out": {}}
    scores = np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)
    lines, found, token = "", np.zeros(1, np.float32), 0
    try:
        read = generation_record(file, VOCAB, Path("generation.json")).rules
        sampler = Sampler(
            SamplingOptions(temperature, seed=1), read, AnswerLimits(len(PROMPT), MAX_NEW, STOPS)
        )
        found = sampler.scores(scores, PROMPT + history)
        token = sampler.sample(scores, PROMPT + history)
        assert checked_rules(read, VOCAB, "", "") == read
    except LvlmError as error:
        lines = str(error)
    assert "\n" not in lines
    assert not np.isnan(found).any()
    assert found.max() < np.inf
    assert 0 <= token < VOCAB
