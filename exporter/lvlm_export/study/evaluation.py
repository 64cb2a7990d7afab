"""Accuracy of a bundle on questions about pictures: reading, scoring, counting.

Two formats are read, one JSON object a line or one array of them, plain or gzip: ``{image, question, answer}`` with an
optional ``kind``, and POPE's ``{question_id, image, text, label}`` (arXiv:2305.10355). Imports
neither torch nor a backend.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_export.study.answers import Answer
from lvlm_profiles.readers import (
    UnreadableError,
    decode,
    parse_json,
    parse_json_lines,
    read_bytes,
    unzip,
)
from lvlm_runtime.errors import LvlmError

ALL = "all"
# 97.5 % point of the normal distribution, for 95 % intervals.
Z = 1.959964


@dataclass(frozen=True)
class Question:
    """One line of a data file.

    Attributes:
        key: File name and line number; an interrupted run finds its place by it.
        image: The picture's file.
        kind: Its kind, or the data file's name.
        yes_no: The answer is scored by POPE's rule.
    """

    key: str
    image: Path
    question: str
    answer: str
    kind: str
    yes_no: bool


@dataclass(frozen=True)
class Row:
    """Accuracy of one kind at one ratio.

    Attributes:
        low: Lower end of the 95 % Wilson interval.
        high: Upper end.
        change: Accuracy minus that at ratio 1.0 on the same questions; None where it was not run.
        lost: Questions that are right at 1.0 and wrong here; None as for ``change``.
        won: Questions that are wrong at 1.0 and right here; None as for ``change``.
    """

    kind: str
    ratio: float
    right: int
    questions: int
    accuracy: float
    low: float
    high: float
    change: float | None
    lost: int | None
    won: int | None


def read_questions(data: Path, images: Path | None) -> list[Question]:
    """All questions of a data file.

    Args:
        data: JSON lines or one JSON array, plain or ``.gz``.
        images: Directory of the pictures; None for the data file's own.

    Raises:
        LvlmError: A line in neither of the two formats, or a picture that does not exist.
    """
    stem = data.name.split(".")[0]
    folder = data.parent if images is None else images
    try:
        packed = read_bytes(data)
        text = decode(unzip(packed) if data.suffix == ".gz" else packed)
        if text.lstrip().startswith("["):
            entries = list(enumerate(parse_json(text), start=1))
        else:
            entries = list(parse_json_lines(text))
    except FileNotFoundError:
        raise LvlmError(
            f"there is no data file {data}; give a file of JSON lines or a JSON array"
        ) from None
    except UnreadableError as error:
        raise LvlmError(
            f"{data} is no file of JSON lines and no JSON array, plain or .gz ({error}); see lvlm-export eval --help"
        ) from None
    questions = [
        _question(entry, f"{data.name}:{number}", stem, folder) for number, entry in entries
    ]
    if not questions:
        raise LvlmError(f"{data} holds no question")
    return questions


def _question(entry: Any, where: str, stem: str, folder: Path) -> Question:
    if not isinstance(entry, dict):
        raise LvlmError(f"{where} is not a JSON object; see lvlm-export eval --help")
    pope = "text" in entry and "label" in entry
    names = ("image", "text", "label") if pope else ("image", "question", "answer")
    values = [entry.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise LvlmError(f"{where} has no text under {name!r}; see lvlm-export eval --help")
    image, question, answer = map(str, values)
    if pope and answer not in ("yes", "no"):
        raise LvlmError(f"{where} has the label {answer!r}; POPE's are yes and no")
    path = folder / image
    if not path.is_file():
        raise LvlmError(f"{where} names the picture {path}, which is not there; give --images DIR")
    return Question(where, path, question, answer, str(entry.get("kind", stem)), pope)


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer counts.

    POPE's rule: the first sentence means no if "no" or "not" is one of its words, otherwise yes.
    Any other answer must equal the expected one, except for case, outer space and a final stop.
    """
    if question.yes_no:
        words = re.findall(r"[a-z]+", answer.split(".")[0].lower())
        return question.answer == ("no" if {"no", "not"} & set(words) else "yes")
    return _plain(answer) == _plain(question.answer)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share. Source: E. B. Wilson, JASA 22 (1927), 209-212."""
    share, extra = right / total, Z * Z / total
    middle = (share + extra / 2) / (1 + extra)
    half = Z * math.sqrt(share * (1 - share) / total + extra / (4 * total)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def tabulate(answers: Sequence[Answer]) -> list[Row]:
    """Accuracy per kind and ratio; last, where there are several kinds, of all together."""
    kinds = list(dict.fromkeys(answer.kind for answer in answers))
    ratios = sorted({answer.ratio for answer in answers}, reverse=True)
    rows = []
    for kind in [*kinds, *([ALL] if len(kinds) > 1 else [])]:
        of_kind = [answer for answer in answers if kind in (ALL, answer.kind)]
        full = {answer.key: answer.right for answer in of_kind if answer.ratio == 1.0}
        for ratio in ratios:
            rows.append(_row(kind, ratio, [a for a in of_kind if a.ratio == ratio], full))
    return rows


def _row(kind: str, ratio: float, answers: Sequence[Answer], full: dict[str, bool]) -> Row:
    right, total = sum(answer.right for answer in answers), len(answers)
    change = lost = won = None
    if full and ratio != 1.0:
        pairs = [(full[answer.key], answer.right) for answer in answers if answer.key in full]
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        change = (won - lost) / len(pairs) if pairs else None
    return Row(
        kind, ratio, right, total, right / total, *wilson_interval(right, total), change, lost, won
    )


def first_per_kind(questions: Iterable[Question], limit: int) -> list[Question]:
    """The first ``limit`` questions of every kind, in the order of the data."""
    counts: dict[str, int] = {}
    kept = []
    for question in questions:
        counts[question.kind] = counts.get(question.kind, 0) + 1
        if counts[question.kind] <= limit:
            kept.append(question)
    return kept
