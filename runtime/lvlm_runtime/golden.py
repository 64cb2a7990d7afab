"""The golden answers of a bundle: what it answered when its build compared it with PyTorch.

They are beside the manifest as ``golden.json``, picture included, so that a device without PyTorch
can check whether its backend gives the same tokens. Beside each token is the second best and how near
it was, so that a device whose arithmetic exchanges two that are too near to tell apart is not taken for
a broken one.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_profiles import records
from lvlm_profiles.files import write_whole
from lvlm_runtime.backends import Value
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import to_json
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import ARGMAX, Session

FILE = "golden.json"
# Of builds by an earlier version, too.
NOT_COMPARED = "not compared with transformers' processor"
REBUILD = "build the bundle again, without --no-verify"
# Largest difference of two scores that the arithmetic may exchange, by the precision of a bundle:
# relative to the largest score that is chosen there; of logits, relative to the largest. (Behind an
# exchange hidden states differ by more, since a row is another token's.) The widest near tie that twelve
# methods met on six pictures of the demo model in half precision was 4.4e-4; logits of tiny random
# models differ by up to 2.5e-3, and PyTorch's own half precision by as much. bfloat16 has three bits
# less; it was not measured, since no kernels for it run on a CPU.
NEAR = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
# Where products with quantised weights round activations to 8 bits, which one processor or backend does
# and another does not: half of the demo's first tokens have logits that differ by more than 1e-2.
NEAR_QUANTISED = 2e-2


@dataclass(frozen=True)
class RunnerUp:
    """The token with the second largest logit.

    Attributes:
        token_id: Which.
        gap: How far its logit was below the largest, relative to the largest absolute value.
    """

    token_id: int
    gap: float


@dataclass(frozen=True)
class GoldenAnswer:
    """Greedy tokens at one ratio.

    Attributes:
        ratio: The budget.
        token_ids: The answer.
        runners_up: One per token; empty in a bundle of an earlier version.
    """

    ratio: float
    token_ids: tuple[int, ...]
    runners_up: tuple[RunnerUp, ...]


@dataclass(frozen=True)
class Golden:
    """One request and its answers.

    Attributes:
        prompt: The question.
        pictures: PNG files in base64.
        max_new_tokens: Longest answer.
        answers: One per ratio.
        processor: How the request compared with transformers' own processor.
    """

    prompt: str
    pictures: tuple[str, ...]
    max_new_tokens: int
    answers: tuple[GoldenAnswer, ...]
    processor: str = NOT_COMPARED


@dataclass(frozen=True)
class Comparison:
    """One ratio on this machine and in the golden answers.

    Attributes:
        ratio: The budget.
        expected: The golden answer.
        got: That of this machine.
        first_difference: Index of the first token that differs; None when all are equal.
        near_tie: Where that token is the golden one's runner-up and both were too near to tell apart,
            how far apart they were; tokens behind it answer another text and are not compared.
    """

    ratio: float
    expected: tuple[int, ...]
    got: tuple[int, ...]
    first_difference: int | None
    near_tie: float | None

    @property
    def passed(self) -> bool:
        """All tokens are equal, up to a near tie where there was one."""
        return self.first_difference is None or self.near_tie is not None


def make_golden(
    session: Session,
    prompt: str,
    pictures: Sequence[Image.Image],
    max_new_tokens: int,
    ratios: Sequence[float],
) -> Golden:
    """Ask a session a question at every ratio, and keep its greedy answers."""
    encoded = []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        encoded.append(base64.b64encode(stream.getvalue()).decode())
    rows = []
    for ratio in ratios:
        seconds: list[RunnerUp] = []

        def note(name: str, value: Value, seconds: list[RunnerUp] = seconds) -> None:
            if name == "lm_head":
                seconds.append(runner_up(session.chain.backend.fetch(value)[0]))

        answer = session.generate(
            prompt,
            pictures,
            ratio,
            max_new_tokens=max_new_tokens,
            sampling=ARGMAX,
            recorder=Recorder(on_stage=note),
        )
        rows.append(GoldenAnswer(ratio, answer.token_ids, tuple(seconds)))
    return Golden(prompt, tuple(encoded), max_new_tokens, tuple(rows))


def runner_up(logits: NDArray[np.floating]) -> RunnerUp:
    """The second best of logits ``[vocab]``.

    Example:
        >>> runner_up(np.array([0.5, 4.0, 3.0]))
        RunnerUp(token_id=2, gap=0.25)
    """
    second, first = np.argsort(logits, kind="stable")[-2:]
    return RunnerUp(int(second), logit_gap(logits, int(first), int(second)))


def logit_gap(logits: NDArray[np.floating], token: int, other: int) -> float:
    """How far a token's logit is above another's, relative to the largest absolute value."""
    gap = float(logits[token]) - float(logits[other])
    return gap / max(float(np.abs(logits).max()), 1e-12)


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs or that only one of them has; None when all are equal.

    Example:
        >>> first_difference([5, 6, 7], [5, 6]), first_difference([5, 6], [5, 6])
        (2, None)
    """
    pairs = enumerate(zip(one, other, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return None if at == len(one) == len(other) else at


def write_golden(directory: Path, golden: Golden) -> None:
    """Keep answers beside a bundle's manifest, which then names the file."""
    write_whole(directory / FILE, json.dumps(to_json(golden), indent=1))


def read_golden(bundle: Bundle) -> Golden:
    """The golden answers of a bundle; LvlmError where it has none or damaged ones."""
    if FILE not in bundle.manifest.files:
        raise LvlmError(f"{bundle.directory} has no {FILE}; {REBUILD}")
    path, remedy = bundle.path(FILE), f"copy the bundle again, or {REBUILD}"
    content = records.parse(bundle.read(FILE), path, remedy)
    if isinstance(content, dict):
        content.setdefault("processor", NOT_COMPARED)
        answers = content.get("answers")
        for answer in answers if isinstance(answers, list) else ():
            if isinstance(answer, dict):
                answer.setdefault("runners_up", [])
    return records.read(Golden, content, path, remedy)


def compare_golden(session: Session, golden: Golden) -> list[Comparison]:
    """Ask a session the golden question at every ratio, and compare the answers."""
    try:
        pictures = [base64.b64decode(each) for each in golden.pictures]
    except ValueError as error:
        raise LvlmError(f"a picture in {FILE} is no base64 ({error}); {REBUILD}") from None
    comparisons = []
    for answer in golden.answers:
        got = session.generate(
            golden.prompt,
            pictures,
            answer.ratio,
            max_new_tokens=golden.max_new_tokens,
            sampling=ARGMAX,
        ).token_ids
        manifest = session.bundle.manifest
        near = NEAR_QUANTISED if manifest.quantised else NEAR[manifest.precision]
        comparisons.append(compare_answer(answer, got, near))
    return comparisons


def compare_answer(answer: GoldenAnswer, got: tuple[int, ...], near: float) -> Comparison:
    """A golden answer and another one.

    Args:
        answer: The golden one.
        got: Tokens of the other.
        near: Largest gap of a near tie.
    """
    expected = answer.token_ids
    at, tie = first_difference(expected, got), None
    if at is not None and at < min(len(answer.runners_up), len(got)):
        second = answer.runners_up[at]
        tie = second.gap if got[at] == second.token_id and second.gap <= near else None
    return Comparison(answer.ratio, expected, got, at, tie)


def comparison_record(comparison: Comparison) -> dict[str, object]:
    """As plain JSON types."""
    return {**dataclasses.asdict(comparison), "equal": comparison.first_difference is None}
