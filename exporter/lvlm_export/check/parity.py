"""Parity of a bundle with PyTorch: the gate of every build, and ``lvlm-export verify``.

At ratio 1.0 the chain's greedy answer must equal ``transformers.generate``; at every other ratio
that of the reference with the same reducers inside the HF model. Hidden states are compared at
every cut, so that a failure names the place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_export.check.reference import Reference
from lvlm_export.check.reference_io import ReferenceRequest, Trace
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import Plan
from lvlm_runtime.backends import Value
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import preprocess
from lvlm_runtime.image.anyres import MULTI, TileLayout
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.sequence import text_runs
from lvlm_runtime.session import Session

QUESTION = "What is in the picture?"
REFERENCE = "the PyTorch reference"
# Largest difference of a hidden state, relative to the largest value of the reference's.
LIMITS = {"float32": 1e-3, "float16": 5e-2}


@dataclass(frozen=True)
class ParitySample:
    """A request to compare: pictures and a question."""

    images: tuple[Image.Image, ...]
    question: str


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
        got: From the chain.
    """

    ratio: float
    sample: int
    source: str
    expected: tuple[int, ...]
    got: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return self.expected == self.got

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs; None when all are equal."""
        if self.passed:
            return None
        pairs = zip(self.expected, self.got, strict=False)
        equal = [a == b for a, b in pairs]
        return equal.index(False) if False in equal else len(equal)


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of a verification."""

    stages: tuple[StageParity, ...]
    answers: tuple[AnswerParity, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.stages) and all(row.passed for row in self.answers)

    def failure(self) -> str:
        """One line on the worst failure."""
        failed = [row for row in self.stages if not row.passed]
        if failed:
            worst = max(failed, key=lambda row: row.error)
            return (
                f"{worst.stage} at ratio {worst.ratio:g} differs from PyTorch by {worst.error:.2g}"
                f" (limit {worst.limit:g})"
            )
        answer = next(row for row in self.answers if not row.passed)
        return (
            f"the answer to sample {answer.sample} at ratio {answer.ratio:g} differs from"
            f" {answer.source} at token {answer.first_difference}"
        )


def synthetic_samples(
    layouts: Sequence[TileLayout], count: int, seed: int = 0
) -> list[ParitySample]:
    """Seeded pictures of soft colour blobs, ``count`` per layout; two pictures for MULTI."""
    generator = np.random.default_rng(seed)
    samples = []
    for layout in layouts:
        size = (layout.image_width or 320, layout.image_height or 240)
        for _ in range(count):
            blobs = [
                Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)
                for _ in range(2 if layout.name == MULTI else 1)
            ]
            samples.append(ParitySample(tuple(blobs), QUESTION))
    return samples


def verify(
    session: Session,
    checkpoint: Checkpoint,
    plan: Plan,
    samples: Sequence[ParitySample],
    max_new_tokens: int,
    advance: Callable[[str], None],
) -> ParityReport:
    """Compare a bundle with PyTorch at every budget.

    Args:
        session: The bundle, loaded.
        checkpoint: What it was built from.
        plan: How it was built.
        samples: Requests to compare.
        max_new_tokens: Longest answer.
        advance: Called once per budget and sample.
    """
    reference = Reference(checkpoint.directory, checkpoint.family, plan)
    limit = LIMITS[session.bundle.manifest.precision]
    errors: dict[tuple[float, str], float] = {}
    answers: list[AnswerParity] = []
    requests = [prepare_request(session, sample) for sample in samples]
    for budget in plan.budgets:
        for index, (sample, request) in enumerate(zip(samples, requests, strict=True)):
            expected, trace = reference.generate(
                request, budget, checkpoint.stop_ids, max_new_tokens
            )
            seen, got = run_chain(session, budget.ratio, sample, max_new_tokens)
            for stage, error in compare_traces(trace, seen).items():
                key = (budget.ratio, stage)
                errors[key] = max(error, errors.get(key, 0.0))
            answers.append(AnswerParity(budget.ratio, index, REFERENCE, expected, got))
            if budget.ratio == 1.0:
                official = reference.generate_unreduced(
                    request, checkpoint.stop_ids, max_new_tokens
                )
                answers.append(AnswerParity(1.0, index, "transformers.generate", official, got))
            advance(f"ratio {budget.ratio:g}, sample {index}")
    stages = tuple(
        StageParity(ratio, stage, error, limit) for (ratio, stage), error in errors.items()
    )
    return ParityReport(stages, tuple(answers))


def prepare_request(session: Session, sample: ParitySample) -> ReferenceRequest:
    """Tokens and pixels of a sample for the model that a bundle was built from."""
    manifest = session.bundle.manifest
    token = manifest.text.image_token_id
    return request_of(sample, session.encoder, manifest.layouts, manifest.preprocess, token)


def request_of(
    sample: ParitySample,
    encoder: PromptEncoder,
    layouts: Sequence[TileLayout],
    spec: preprocess.PreprocessSpec,
    image_token_id: int,
) -> ReferenceRequest:
    """Tokens and pixels of a sample, by the runtime's own preprocessing.

    Tests of their own hold both equal to the processors of ``transformers``.
    """
    named = {layout.name: layout for layout in layouts}
    several = len(sample.images) > 1 and MULTI in named
    layout = named[MULTI] if several else layouts[0]
    ids = encoder.encode(sample.question, len(sample.images))
    prepared = preprocess.preprocess(list(sample.images), spec, layout)
    # To the model a letterboxed picture is one of the layout's nominal size.
    sizes = [
        (layout.image_height, layout.image_width)
        if fit.letterboxed
        else (image.height, image.width)
        for image, fit in zip(sample.images, prepared.fits, strict=True)
    ]
    runs, query_ids = text_runs(ids, image_token_id), encoder.question(sample.question)
    return ReferenceRequest(runs, prepared.pixel_values, layout, sizes, query_ids)


def run_chain(
    session: Session, ratio: float, sample: ParitySample, max_new_tokens: int
) -> tuple[dict[str, NDArray[Any]], tuple[int, ...]]:
    """Hidden states of the prefill, by stage or site, and the answer of the chain."""
    seen: dict[str, NDArray[Any]] = {}

    def keep(name: str, value: Value) -> None:
        if name not in seen:
            seen[name] = session.chain.backend.fetch(value).copy()

    answer = session.generate(
        sample.question,
        sample.images,
        ratio,
        max_new_tokens=max_new_tokens,
        recorder=Recorder(on_stage=keep),
    )
    return seen, answer.token_ids


def compare_traces(trace: Trace, seen: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Relative error at every cut; a cut that one side lacks is an error of its own."""
    missing = set(trace.hidden) ^ set(seen)
    if missing:
        raise LvlmError(f"chain and reference do not have the same stages: {sorted(missing)}")
    errors = {}
    for name, expected in trace.hidden.items():
        got = seen[name].astype(np.float32)
        if got.shape != expected.shape:
            raise LvlmError(
                f"{name} has shape {got.shape} in the chain and {expected.shape} in PyTorch"
            )
        errors[name] = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))
    return errors
