"""Questions for a search: in groups by picture, shuffled, one half to choose by and one to judge by."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from PIL import Image

from lvlm_export.families import ModelShape
from lvlm_export.study.evaluation import Question
from lvlm_export.tune.asking import PictureQuestions
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.encoder import PromptEncoder


class DemoSample(Protocol):
    """A question that was made together with its picture."""

    @property
    def image(self) -> Image.Image:
        """The picture."""
        ...

    @property
    def question(self) -> str:
        """The question."""
        ...

    @property
    def answer(self) -> str:
        """The right answer."""
        ...

    @property
    def kind(self) -> str:
        """Its kind."""
        ...


@dataclass(frozen=True)
class Halves:
    """The questions of a search.

    Attributes:
        search: What is chosen by.
        held: What the chosen one is judged by; no picture is in both.
        digest: SHA-256 of all questions and answers in their order.
    """

    search: tuple[PictureQuestions, ...]
    held: tuple[PictureQuestions, ...]
    digest: str

    @property
    def counts(self) -> tuple[int, int]:
        """Questions of both."""
        search, held = self.borders
        return search[-1], held[-1]

    @property
    def borders(self) -> tuple[list[int], list[int]]:
        """Of both, how many questions there are about the first 0, 1, 2, … pictures."""
        search, held = (
            list(accumulate((len(each.questions) for each in half), initial=0))
            for half in (self.search, self.held)
        )
        return search, held


def of_files(questions: Iterable[Question]) -> list[tuple[Hashable, Picture, Question]]:
    """Questions of a data file with their pictures."""
    return [(question.image, question.image, question) for question in questions]


def of_samples(samples: Sequence[DemoSample]) -> list[tuple[Hashable, Picture, Question]]:
    """Questions of the demo with their pictures."""
    found: list[tuple[Hashable, Picture, Question]] = []
    for number, each in enumerate(samples):
        key = f"demo:{number + 1}"
        question = Question(key, Path(key), each.question, each.answer, each.kind, yes_no=False)
        found.append((id(each.image), each.image, question))
    return found


def split_halves(
    questions: Sequence[tuple[Hashable, Picture, Question]], most: int | None, seed: int
) -> Halves:
    """Shuffle by picture, and divide so that both halves have about as many questions.

    Args:
        questions: A key that is one per picture, the picture, and the question.
        most: Questions of both halves together, about; None for all.
        seed: Of the order.

    Raises:
        UsageError: There are fewer than two pictures.
    """
    groups: dict[Hashable, PictureQuestions] = {}
    for key, picture, question in questions:
        before = groups[key].questions if key in groups else ()
        groups[key] = PictureQuestions(picture, (*before, question))
    pictures = list(groups.values())
    random.Random(seed).shuffle(pictures)
    halves: tuple[list[PictureQuestions], list[PictureQuestions]] = [], []
    counts = [0, 0]
    for each in pictures:
        if most is not None and sum(counts) >= most:
            break
        side = 0 if counts[0] <= counts[1] else 1
        halves[side].append(each)
        counts[side] += len(each.questions)
    if not halves[1]:
        raise UsageError(
            "a search needs questions about two pictures or more, one half to choose by and one to"
            f" judge by, and there is {len(pictures)}; give more questions"
        )
    digest = hashlib.sha256()
    for half in halves:
        for each in half:
            for q in each.questions:
                digest.update(repr((q.key, q.question, q.answer, q.yes_no)).encode())
    return Halves(tuple(halves[0]), tuple(halves[1]), digest.hexdigest())


def text_lengths(
    halves: Halves, encoder: PromptEncoder, shape: ModelShape, longest: int
) -> list[int]:
    """Text tokens of every prompt, and a refusal before anything is asked where one does not fit.

    Args:
        halves: The questions.
        encoder: Turns them into tokens.
        shape: The model.
        longest: Tokens of an answer, at most.

    Raises:
        LvlmError: A prompt and its answer exceed the context at ratio 1.0.
    """
    full = shape.visual_tokens(shape.layouts[0], shape.vision.tokens)
    limit, found = shape.text.context_length, []
    for each in (*halves.search, *halves.held):
        for question in each.questions:
            text = len(encoder.encode(question.question, 1)) - 1
            if text + full + longest > limit:
                raise LvlmError(
                    f"{question.key} does not fit: {text} tokens of text, {full} of the picture and an"
                    f" answer of {longest} exceed the context of {limit}; leave the question out, or"
                    " give a smaller --max-new-tokens"
                )
            found.append(text)
    return found
