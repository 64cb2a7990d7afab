"""What a verification found, and its words."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_export.check.ties import Tie
from lvlm_runtime.golden import first_difference

REFERENCE = "the PyTorch reference"


@dataclass(frozen=True)
class StageParity:
    """Worst difference at one cut over all samples.

    Attributes:
        ratio: The budget.
        stage: Stage or site that gave the hidden state.
        error: ``max |a - b| / max |b|``.
        limit: What passes.
    """

    ratio: float
    stage: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


@dataclass(frozen=True)
class AnswerParity:
    """Greedy tokens of one sample.

    Attributes:
        expected: From PyTorch; ``source`` names the function.
        got: From the chain; where a reducer met a near tie, of the chain that PyTorch's choice led.
        ties: Where the chain, given ``expected`` so far, has another token as its first.
    """

    ratio: float
    sample: int
    source: str
    expected: tuple[int, ...]
    got: tuple[int, ...]
    ties: tuple[Tie, ...] = ()

    @property
    def passed(self) -> bool:
        """All tokens are equal, or those that differ are near ties of logits."""
        tied = bool(self.ties) and all(tie.passed for tie in self.ties)
        return self.expected == self.got or tied

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs; None when all are equal."""
        return first_difference(self.expected, self.got)


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of a verification."""

    stages: tuple[StageParity, ...]
    answers: tuple[AnswerParity, ...]
    ties: tuple[Tie, ...] = ()

    @property
    def passed(self) -> bool:
        rows: tuple[StageParity | AnswerParity | Tie, ...] = (
            *self.stages,
            *self.answers,
            *self.ties,
        )
        return all(row.passed for row in rows)

    def failure(self) -> str:
        """One line on the first failure on the way through the chain."""
        for tie in self.ties:
            if not tie.passed:
                return (
                    f"{tie.place} at ratio {tie.ratio:g} is chosen otherwise than in PyTorch, and is"
                    f" no near tie: its scores differ by {tie.gap:.2g} of the largest (limit"
                    f" {tie.limit:g})"
                )
        for row in self.stages:
            if not row.passed:
                return (
                    f"{row.stage} at ratio {row.ratio:g} differs from PyTorch by {row.error:.2g}"
                    f" (limit {row.limit:g})"
                )
        answer = next(answer for answer in self.answers if not answer.passed)
        return (
            f"the answer to sample {answer.sample} at ratio {answer.ratio:g} differs from"
            f" {answer.source} at token {answer.first_difference}"
        )
