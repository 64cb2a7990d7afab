"""The golden answers of a bundle: what it answered when its build compared it with PyTorch.

They are beside the manifest as ``golden.json``, picture included, so that a device without PyTorch
can check whether its backend gives the same tokens.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lvlm_profiles import records
from lvlm_profiles.files import write_whole
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.files import parse_json
from lvlm_runtime.bundle.manifest import to_json
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import ARGMAX, Session

FILE = "golden.json"
# Of builds by an earlier version, too.
NOT_COMPARED = "not compared with transformers' processor"
REBUILD = "build the bundle again, without --no-verify"


@dataclass(frozen=True)
class GoldenAnswer:
    """Greedy tokens at one ratio."""

    ratio: float
    token_ids: tuple[int, ...]


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
        first_difference: Index of the first token that differs; None when all are equal.
    """

    ratio: float
    expected: tuple[int, ...]
    got: tuple[int, ...]
    first_difference: int | None


def make_golden(
    prompt: str,
    pictures: Sequence[Image.Image],
    max_new_tokens: int,
    answers: Mapping[float, tuple[int, ...]],
) -> Golden:
    """A request with its greedy tokens by ratio."""
    encoded = []
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        encoded.append(base64.b64encode(stream.getvalue()).decode())
    rows = tuple(GoldenAnswer(ratio, tokens) for ratio, tokens in answers.items())
    return Golden(prompt, tuple(encoded), max_new_tokens, rows)


def write_golden(directory: Path, golden: Golden) -> None:
    """Keep answers beside a bundle's manifest, which then names the file."""
    write_whole(directory / FILE, json.dumps(to_json(golden), indent=1))


def read_golden(bundle: Bundle) -> Golden:
    """The golden answers of a bundle; LvlmError where it has none or damaged ones."""
    if FILE not in bundle.manifest.files:
        raise LvlmError(f"{bundle.directory} has no {FILE}; {REBUILD}")
    path, remedy = bundle.path(FILE), f"copy the bundle again, or {REBUILD}"
    content = parse_json(bundle.read(FILE), path, remedy)
    if isinstance(content, dict):
        content.setdefault("processor", NOT_COMPARED)
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
        pairs = zip(answer.token_ids, got, strict=False)
        equal = [a == b for a, b in pairs]
        at = equal.index(False) if False in equal else len(equal)
        same = got == answer.token_ids
        comparisons.append(Comparison(answer.ratio, answer.token_ids, got, None if same else at))
    return comparisons


def comparison_record(comparison: Comparison) -> dict[str, object]:
    """As plain JSON types."""
    return {**dataclasses.asdict(comparison), "equal": comparison.first_difference is None}
