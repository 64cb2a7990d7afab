"""Exact-match accuracy on questions about unseen pictures; needs neither torch nor ONNX.

Whatever can answer a question about a picture can be measured: the Hugging Face checkpoint
(``python -m lvlm_export.demo.train.evaluate_checkpoint``), an exported bundle, a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

DEFAULT_QUESTIONS = 2000


class AnsweredSample(Protocol):
    """What is scored: a sample of scenes, or of what else is asked."""

    @property
    def answer(self) -> str:
        """The right answer."""
        ...

    @property
    def kind(self) -> str:
        """The kind of question."""
        ...


@dataclass(frozen=True)
class AnswerCounts:
    """How many of a number of questions were answered right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """Right answers as a share in ``[0, 1]``."""
        return self.right / self.total


def right_answers(samples: Sequence[AnsweredSample], answers: Sequence[str]) -> list[bool]:
    """Whether each answer is its sample's own; outer white space does not count."""
    return [
        answer.strip() == sample.answer for sample, answer in zip(samples, answers, strict=True)
    ]


def score_answers(
    samples: Sequence[AnsweredSample], answers: Sequence[str]
) -> dict[str, AnswerCounts]:
    """Accuracy of answers per kind, in the samples' order, and, last, "all"."""
    right = right_answers(samples, answers)
    table = {}
    for kind in dict.fromkeys(sample.kind for sample in samples):
        of_kind = [hit for hit, sample in zip(right, samples, strict=True) if sample.kind == kind]
        table[kind] = AnswerCounts(sum(of_kind), len(of_kind))
    return {**table, "all": AnswerCounts(sum(right), len(right))}


def format_table(table: dict[str, AnswerCounts]) -> str:
    """The table in Markdown."""
    rows = [
        f"| {kind} | {accuracy.right} | {accuracy.total} | {accuracy.share:.1%} |"
        for kind, accuracy in table.items()
    ]
    return "\n".join(["| kind | right | questions | accuracy |", "|---|---:|---:|---:|", *rows])
