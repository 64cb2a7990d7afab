"""Choosing the next token from logits, in numpy, as ``generate`` of ``transformers`` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.prompt.rules import (
    NO_LIMITS,
    NO_RULES,
    AnswerLimits,
    GenerationRules,
    apply_rules,
)

# Changes scores ``[V]`` of the next token, float32, given the ids of the prompt and the answer so far.
LogitsProcessor = Callable[[Sequence[int], NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; the default is greedy.

    Attributes:
        temperature: 0 chooses the most probable token; above 0 the logits are divided by it and
            a token is drawn.
        top_k: Draw among the k most probable tokens (ties with the k-th stay), or None for all.
        top_p: Draw among the fewest tokens whose probabilities reach top_p, or None for all.
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less probable; None
            takes the bundle's, which is 1 where its checkpoint says nothing.
        rules: Keep to the rules of the checkpoint's generation_config.json, as ``GenerationRules``
            lists them.
        seed: The same seed draws the same tokens; None takes one from the system.

    Raises:
        UsageError: A value is outside its range, or top_k or top_p would have no effect.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    rules: bool = True

    def __post_init__(self) -> None:
        """Check every range, so that a ``Sampler`` need not."""
        if not (_is_real(self.temperature) and self.temperature >= 0):
            raise UsageError(_outside("temperature", self.temperature, "0 (greedy) or above"))
        if self.top_k is not None and not (_is_int(self.top_k) and self.top_k >= 1):
            raise UsageError(_outside("top_k", self.top_k, "a whole number, 1 or above"))
        if self.top_p is not None and not (_is_real(self.top_p) and 0 < self.top_p <= 1):
            raise UsageError(_outside("top_p", self.top_p, "a number above 0 and at most 1"))
        penalty = self.repetition_penalty
        if penalty is not None and not (_is_real(penalty) and penalty > 0):
            allowed = "a number above 0 (1 is off)"
            raise UsageError(_outside("repetition_penalty", self.repetition_penalty, allowed))
        if self.seed is not None and not (_is_int(self.seed) and self.seed >= 0):
            raise UsageError(_outside("seed", self.seed, "a whole number, 0 or above"))
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise UsageError(
                "top_k and top_p have no effect at temperature 0 (greedy); leave them out, or give "
                "a temperature above 0"
            )


class Sampler:
    """Draws tokens one after another; its only state is the random generator.

    Order and mathematics are those of transformers 5.23, ``generation/logits_process.py``: the rules
    (repetition penalty among them), processors of the caller, temperature, top-k, top-p, all in float32. The random numbers are
    not PyTorch's: a seed gives other tokens than ``generate`` with that seed.
    """

    def __init__(
        self,
        options: SamplingOptions,
        rules: GenerationRules = NO_RULES,
        limits: AnswerLimits = NO_LIMITS,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        """Start the random generator (PCG64) from the options' seed.

        Args:
            options: What the user chose; it counts before the rules.
            rules: Of the bundle.
            limits: Of the request, for rules that count.
            processors: Of the caller, called in their order.
        """
        self.options, self.limits, self.processors = options, limits, tuple(processors)
        rules = rules if options.rules else NO_RULES
        if options.repetition_penalty is not None:
            rules = replace(rules, repetition_penalty=options.repetition_penalty)
        self.rules = rules
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(self, logits: NDArray[np.floating], history: Sequence[int]) -> int:
        """Choose the next token.

        Args:
            logits: ``[V]``, of the last position.
            history: Token ids of the prompt and the answer so far, as ``apply_rules`` wants them.

        Raises:
            LvlmError: No logit is a number above minus infinity, one is not a number, or the rules
                leave no token.
        """
        scores = self.scores(logits, history)
        if self.options.temperature == 0:
            return int(np.argmax(scores))
        cumulative = np.cumsum(_softmax(scores), dtype=np.float64)
        drawn = self._random.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, drawn, side="right"))

    def scores(self, logits: NDArray[np.floating], history: Sequence[int]) -> NDArray[np.float32]:
        """The scores that a token is drawn from, ``[V]``; minus infinity where it cannot be.

        Arguments and errors as of ``sample``.
        """
        scores = np.array(logits, dtype=np.float32)
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(f"logits must be [V], got shape {scores.shape}")
        peak = float(scores.max())
        if not math.isfinite(peak):
            raise LvlmError(
                f"the model's largest logit is {peak}, a finite number is needed: its precision is "
                "probably too low; build with a higher precision"
            )
        scores = apply_rules(self.rules, scores, history, self.limits)
        peak = float(scores.max())
        if math.isnan(peak) or peak == math.inf:
            raise LvlmError(
                f"the rules in force ({', '.join(self.rules.in_force)}) make a score of {peak}, a finite"
                " number is needed: their factors are too large or too small; give --no-model-rules,"
                " or another repetition penalty"
            )
        if peak == -math.inf:
            raise LvlmError(
                "the rules of the checkpoint's generation_config.json"
                f" ({', '.join(self.rules.in_force)}) leave no token to go on with; give"
                " --no-model-rules, or correct the file and build again"
            )
        for processor in self.processors:
            scores = _processed(processor, history, scores)
        options = self.options
        if options.temperature == 0:
            return scores
        scores /= np.float32(options.temperature)
        if options.top_k is not None and options.top_k < scores.size:
            kth = np.partition(scores, -options.top_k)[-options.top_k]
            scores[scores < kth] = -np.inf
        if options.top_p is not None and options.top_p < 1:
            scores = _top_p(scores, options.top_p)
        return scores


def _processed(
    processor: LogitsProcessor, history: Sequence[int], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scores as a caller's processor returns them, which may be the ones it was given, changed."""
    size, given = scores.size, processor(history, scores)
    name = getattr(processor, "__name__", type(processor).__name__)
    if not isinstance(given, np.ndarray) or given.shape != (size,) or given.dtype.kind != "f":
        kind = (
            f"{given.dtype} {list(given.shape)}" if isinstance(given, np.ndarray) else type(given)
        )
        raise UsageError(
            f"the logits processor {name} returned {kind}; return scores of float32 [{size}]"
        )
    peak = float(given.max())
    if not math.isfinite(peak):
        raise UsageError(
            f"the logits processor {name} made a largest score of {peak}, a finite number is needed;"
            " leave at least one token to go on with"
        )
    return np.asarray(given, dtype=np.float32)


def _top_p(scores: NDArray[np.float32], top_p: float) -> NDArray[np.float32]:
    """Drop the least probable tokens, as many as hold at most 1 - top_p. Source: 1904.09751."""
    left = np.flatnonzero(scores > -np.inf)  # top-k leaves few of many to sort
    order = left[np.argsort(scores[left], kind="stable")]
    # PyTorch's cumsum of float32 on a CPU accumulates in float64 and rounds each sum.
    reached = np.cumsum(_softmax(scores[order]), dtype=np.float64).astype(np.float32)
    dropped = reached <= np.float32(1 - top_p)
    dropped[-1] = False
    scores[order[dropped]] = -np.inf
    return scores


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of scores ``[V]``."""
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum(dtype=np.float32), dtype=np.float32)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _outside(name: str, value: object, allowed: str) -> str:
    return f"{name} is {value!r}; give {allowed}"
