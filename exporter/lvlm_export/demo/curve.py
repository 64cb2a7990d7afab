"""Accuracy over ratio of one loaded bundle: every question at every ratio."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lvlm_export.demo.evaluate import AnswerCounts, score_answers
from lvlm_export.demo.questions import MosaicSample
from lvlm_runtime import Session

# The longest answer of the task ("bottom middle") is a few tokens; a stop token ends it.
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class CurvePoint:
    """One budget's result.

    Attributes:
        ratio: Share of visual tokens kept.
        stages: Visual tokens at each stage.
        accuracy: Per kind of question and, last, "all".
        first_token_ms: Median time to first token, all budgets interleaved in one run.
    """

    ratio: float
    stages: tuple[tuple[str, int], ...]
    accuracy: dict[str, AnswerCounts]
    first_token_ms: float


def measure_curve(
    session: Session,
    ratios: Sequence[float],
    samples: Iterable[MosaicSample],
) -> list[CurvePoint]:
    """Ask every question at every ratio, the ratios by turns so that noise affects all equally."""
    done: list[MosaicSample] = []
    answers: dict[float, list[str]] = {ratio: [] for ratio in ratios}
    first: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    stages: dict[float, tuple[tuple[str, int], ...]] = {}
    for sample in samples:
        done.append(sample)
        for ratio in ratios:
            result = session.generate(
                sample.question, [sample.image], ratio, max_new_tokens=ANSWER_TOKENS
            )
            answers[ratio].append(result.text)
            first[ratio].append(result.time_to_first_token_ms)
            stages[ratio] = result.visual_tokens
    return [
        CurvePoint(
            ratio,
            stages[ratio],
            score_answers(done, answers[ratio]),
            statistics.median(first[ratio]),
        )
        for ratio in ratios
    ]


def stage_text(stages: Sequence[tuple[str, int]]) -> str:
    """Token counts along the chain: ``196 > 162 > 128 > 94 > 65``, equal neighbours once."""
    counts = [count for _, count in stages]
    kept = [count for i, count in enumerate(counts) if i == 0 or count != counts[i - 1]]
    return " > ".join(map(str, kept))
