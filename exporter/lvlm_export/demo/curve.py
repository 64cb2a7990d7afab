"""Accuracy and first-token time over ratio of one loaded bundle: every question at every ratio."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from lvlm_export.demo.evaluate import AnswerCounts, AnsweredSample, right_answers, score_answers
from lvlm_profiles.cost.request import prefill_works, total
from lvlm_runtime import Session
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.bundle.token_path import token_path

# The longest answer of the task (three objects from left to right) has fewer; a stop token ends it.
ANSWER_TOKENS = 40


class AskedSample(AnsweredSample, Protocol):
    """A question about a picture, with its answer."""

    @property
    def image(self) -> Image.Image:
        """The picture."""
        ...

    @property
    def question(self) -> str:
        """What is asked about it."""
        ...


@dataclass(frozen=True)
class CurvePoint:
    """One budget's result.

    Attributes:
        ratio: Share of visual tokens kept.
        stages: Visual tokens at each stage.
        right: Whether each question was answered right, in their order.
        accuracy: Per kind of question and, last, "all".
        first_token_ms: Median time to first token, all budgets interleaved in one run.
        first_token_share: Median of that time over the unreduced one's for the same question; None
            where it was never asked unreduced.
        flops_share: FLOPs up to the first token over the unreduced ones, by the cost model; None
            likewise.
    """

    ratio: float
    stages: tuple[tuple[str, int], ...]
    right: tuple[bool, ...]
    accuracy: dict[str, AnswerCounts]
    first_token_ms: float
    first_token_share: float | None
    flops_share: float | None


def measure_curve(
    session: Session,
    ratios: Sequence[float],
    samples: Iterable[AskedSample],
    compare_every: int = 0,
) -> list[CurvePoint]:
    """Ask every question at every ratio, the ratios by turns so that noise affects all equally.

    Args:
        session: The bundle.
        ratios: Of its budgets.
        samples: The questions.
        compare_every: Ask every so many-th question unreduced too, for the shares of its time; 0 for
            none. Needless where 1.0 is among the ratios.

    Raises:
        LvlmError: The bundle has no such budget.
    """
    done: list[AskedSample] = []
    answers: dict[float, list[str]] = {ratio: [] for ratio in ratios}
    first: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    shares: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    stages: dict[float, tuple[tuple[str, int], ...]] = {}
    prompts: list[int] = []
    for number, sample in enumerate(samples):
        done.append(sample)
        timed: dict[float, float] = {}
        compared = compare_every > 0 and number % compare_every == 0
        for ratio in sorted({*ratios, *([1.0] if compared else [])}, reverse=True):
            result = session.generate(
                sample.question, [sample.image], ratio, max_new_tokens=ANSWER_TOKENS
            )
            timed[ratio] = result.time_to_first_token_ms
            if ratio in answers:
                answers[ratio].append(result.text)
                first[ratio].append(result.time_to_first_token_ms)
                stages[ratio] = result.visual_tokens
            if ratio == 1.0:
                prompts.append(result.prompt_tokens)
        for ratio in ratios if 1.0 in timed else ():
            shares[ratio].append(timed[ratio] / timed[1.0])
    manifest = session.bundle.manifest
    flops = _first_token_flops(manifest, statistics.median(prompts)) if prompts else {}
    return [
        CurvePoint(
            ratio,
            stages[ratio],
            tuple(right_answers(done, answers[ratio])),
            score_answers(done, answers[ratio]),
            statistics.median(first[ratio]),
            statistics.median(shares[ratio]) if shares[ratio] else None,
            flops[ratio] / flops[1.0] if flops else None,
        )
        for ratio in ratios
    ]


def _first_token_flops(manifest: Manifest, prompt_tokens: float) -> dict[float, int]:
    """Of every budget, for one picture of the first layout and a whole prompt of so many tokens."""
    name = manifest.layouts[0].name
    parts = {budget.ratio: (budget, budget.layout(name)) for budget in manifest.budgets}
    text = round(prompt_tokens) - parts[1.0][1].tokens_in
    return {
        ratio: total(
            prefill_works(manifest.dims, token_path(manifest, budget, part, text, 1))
        ).flops
        for ratio, (budget, part) in parts.items()
    }


def stage_text(stages: Sequence[tuple[str, int]]) -> str:
    """Token counts along the chain: ``196 > 162 > 128 > 94 > 65``, equal neighbours once."""
    counts = [count for _, count in stages]
    kept = [count for i, count in enumerate(counts) if i == 0 or count != counts[i - 1]]
    return " > ".join(map(str, kept))
