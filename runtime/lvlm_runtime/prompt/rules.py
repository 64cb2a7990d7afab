"""Rules of a checkpoint's generation_config.json, applied to logits in numpy.

They hold for greedy answers too: what may not be said, what may not be said again, how short an
answer may be. Order and mathematics are those of transformers 5.23, ``_get_logits_processor`` of
``generation/utils.py`` and the classes of ``generation/logits_process.py``, all in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvlm_profiles.records import mismatch
from lvlm_runtime.errors import LvlmError

Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
# Smallest and largest factor that float32, in which scores are counted, holds in full precision.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class GenerationRules:
    """What every answer keeps to; the fields are named as in generation_config.json, in its order.

    Attributes:
        sequence_bias: ``(ids, bias)``: what is added to the last id's score where the others stand
            in front of it.
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less probable.
        no_repeat_ngram_size: So many tokens in a row stand once in prompt and answer; 0 is off.
        bad_words_ids: Ids that may not follow one another; a lone stop id has no effect.
        min_length: Tokens of prompt and answer before which the answer does not end.
        min_new_tokens: The same of the answer alone.
        forced_eos_token_id: The last of ``max_new_tokens`` is one of these, if any.
        exponential_decay_length_penalty: ``(start, factor)``: behind ``start`` tokens of the answer
            its end becomes more probable by a power of the factor, or None.
        suppress_tokens: Ids that are never said.
        begin_suppress_tokens: Ids that an answer does not begin with.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_eos_token_id: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()

    @property
    def in_force(self) -> tuple[str, ...]:
        """Names of the rules that are not off."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) != each.default)


NO_RULES = GenerationRules()


def checked_rules(
    rules: GenerationRules, vocab_size: int, where: str | Path, remedy: str
) -> GenerationRules:
    """Rules that can be applied to every score, as transformers takes them.

    Args:
        rules: As a file has them, of the right types.
        vocab_size: Tokens of the language model.
        where: The file, for messages.
        remedy: What to do about a wrong one.

    Returns:
        The rules; a count below 0 is 0, which is off, as transformers has it.

    Raises:
        LvlmError: A penalty that is not above 0, a factor or bias that float32 does not hold, an
            empty sequence, or a token that the model does not have.
    """
    for name, token in _tokens(rules):
        check_token(name, token, vocab_size, where, remedy)
    sequences = {
        "sequence_bias": [ids for ids, _ in rules.sequence_bias],
        "bad_words_ids": list(rules.bad_words_ids),
    }
    for name, several in sequences.items():
        if () in several:
            entry = f"{name}[{several.index(())}]"
            raise mismatch(where, entry, "ids of tokens", "an empty list", remedy)
    penalty = rules.repetition_penalty
    if not _SMALLEST <= penalty <= _LARGEST:
        raise mismatch(where, "repetition_penalty", "a number above 0", repr(penalty), remedy)
    finite = {f"sequence_bias[{i}]": bias for i, (_, bias) in enumerate(rules.sequence_bias)}
    if rules.exponential_decay_length_penalty is not None:
        name = "exponential_decay_length_penalty"
        finite[name] = rules.exponential_decay_length_penalty[1]
    for entry, value in finite.items():
        if not abs(value) <= _LARGEST:
            raise mismatch(where, entry, "a finite number", repr(value), remedy)
    counts = ("no_repeat_ngram_size", "min_length", "min_new_tokens")
    return replace(rules, **{name: max(getattr(rules, name), 0) for name in counts})


def check_token(name: str, token: int, vocab_size: int, where: str | Path, remedy: str) -> None:
    """LvlmError where a setting names a token that the model does not have.

    Arguments as of ``checked_rules``; ``name`` is the setting's.
    """
    if not 0 <= token < vocab_size:
        raise LvlmError(
            f"{where}: {name} names token {token}, and the model has {vocab_size}; {remedy}"
        )


def _tokens(rules: GenerationRules) -> list[tuple[str, int]]:
    """Every id that a rule names, behind the rule's name."""
    several = [
        *(("sequence_bias", ids) for ids, _ in rules.sequence_bias),
        *(("bad_words_ids", ids) for ids in rules.bad_words_ids),
        *(
            (name, getattr(rules, name))
            for name in ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
        ),
    ]
    return [(name, token) for name, ids in several for token in ids]


@dataclass(frozen=True)
class AnswerLimits:
    """What rules need to know of a request.

    Attributes:
        prompt_tokens: Tokens in front of the answer, visual tokens included.
        max_new_tokens: Longest answer; None where there is no end.
        stop_ids: Ids that end an answer.
    """

    prompt_tokens: int = 0
    max_new_tokens: int | None = None
    stop_ids: tuple[int, ...] = ()


NO_LIMITS = AnswerLimits()


def apply_rules(
    rules: GenerationRules, scores: Scores, history: Sequence[int], limits: AnswerLimits
) -> Scores:
    """Scores ``[V]`` of the next token under all rules; minus infinity where it cannot be.

    Args:
        rules: Those in force.
        scores: ``[V]``, which stay as they are.
        history: Token ids of the prompt, as many image tokens as the model sees at ratio 1.0
            included, and of the answer so far. Ids of V or above are never chosen.
        limits: Of the request.
    """
    if rules == NO_RULES:
        return scores
    ids = np.asarray(history, dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):  # the sampler refuses what comes of it
        for rule in _IN_ORDER:
            scores = rule(rules, scores, ids, limits)
    return scores


def _sequence_bias(rules: GenerationRules, scores: Scores, ids: Ids, _: AnswerLimits) -> Scores:
    return _biased(scores, ids, rules.sequence_bias)


def _repetition_penalty(
    rules: GenerationRules, scores: Scores, ids: Ids, _: AnswerLimits
) -> Scores:
    """Source: arXiv:1909.05858 4.1."""
    if rules.repetition_penalty == 1.0:
        return scores
    seen = np.unique(ids[(ids >= 0) & (ids < scores.size)])
    factor, values = np.float32(rules.repetition_penalty), scores[seen]
    scores = scores.copy()
    scores[seen] = np.where(values < 0, values * factor, values / factor)
    return scores


def _no_repeat_ngram(rules: GenerationRules, scores: Scores, ids: Ids, _: AnswerLimits) -> Scores:
    size = rules.no_repeat_ngram_size
    if size == 0 or len(ids) < size:
        return scores
    ngrams = np.lib.stride_tricks.sliding_window_view(ids, size)
    begun = (ngrams[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
    return _without(scores, ngrams[begun, -1])


def _bad_words(rules: GenerationRules, scores: Scores, ids: Ids, limits: AnswerLimits) -> Scores:
    lone_stops = {(each,) for each in limits.stop_ids}
    words = [word for word in rules.bad_words_ids if word not in lone_stops]
    return _biased(scores, ids, [(word, -np.inf) for word in words])


def _min_length(rules: GenerationRules, scores: Scores, ids: Ids, limits: AnswerLimits) -> Scores:
    short = len(ids) - limits.prompt_tokens < rules.min_new_tokens
    if short or len(ids) < rules.min_length:
        return _without(scores, limits.stop_ids)
    return scores


def _forced_end(rules: GenerationRules, scores: Scores, ids: Ids, limits: AnswerLimits) -> Scores:
    last = limits.prompt_tokens + (limits.max_new_tokens or 0) - 1
    if not rules.forced_eos_token_id or limits.max_new_tokens is None or len(ids) != last:
        return scores
    forced = np.full_like(scores, -np.inf)
    forced[list(rules.forced_eos_token_id)] = 0
    return forced


def _decay(rules: GenerationRules, scores: Scores, ids: Ids, limits: AnswerLimits) -> Scores:
    if rules.exponential_decay_length_penalty is None:
        return scores
    start, factor = rules.exponential_decay_length_penalty
    beyond = len(ids) - limits.prompt_tokens - start
    if beyond <= 0:
        return scores
    stops = list(limits.stop_ids)
    # Where a long answer goes on behind its end the power grows beyond every number: the end is then
    # as probable as float32 can say. Python's own power would raise an error.
    power = np.float32(np.float64(factor) ** beyond - 1)
    penalty = np.abs(scores[stops]) * np.clip(power, -_LARGEST, _LARGEST)
    scores = scores.copy()
    ended = np.clip(scores[stops] + penalty, -_LARGEST, _LARGEST)
    scores[stops] = np.where(np.isfinite(scores[stops]), ended, scores[stops])
    return scores


def _suppress(rules: GenerationRules, scores: Scores, _ids: Ids, _: AnswerLimits) -> Scores:
    return _without(scores, rules.suppress_tokens)


def _suppress_at_begin(
    rules: GenerationRules, scores: Scores, ids: Ids, limits: AnswerLimits
) -> Scores:
    begins = len(ids) == limits.prompt_tokens
    return _without(scores, rules.begin_suppress_tokens) if begins else scores


_IN_ORDER: tuple[Callable[[GenerationRules, Scores, Ids, AnswerLimits], Scores], ...] = (
    *(_sequence_bias, _repetition_penalty, _no_repeat_ngram, _bad_words, _min_length),
    *(_forced_end, _decay, _suppress, _suppress_at_begin),
)


def _biased(scores: Scores, ids: Ids, biases: Sequence[tuple[tuple[int, ...], float]]) -> Scores:
    """Add to the last id of every sequence whose other ids end the history."""
    if not biases:
        return scores
    scores = scores.copy()
    for (*before, last), bias in biases:
        if len(before) <= len(ids) and ids[len(ids) - len(before) :].tolist() == before:
            scores[last] += np.float32(bias)
    return scores


def _without(scores: Scores, banned: Sequence[int] | Ids) -> Scores:
    """Scores without some tokens; ids that the vocabulary does not have are none."""
    chosen = np.asarray(banned, dtype=np.int64)
    chosen = chosen[(chosen >= 0) & (chosen < scores.size)]
    if not len(chosen):
        return scores
    scores = scores.copy()
    scores[chosen] = -np.inf
    return scores
