"""Parity of a bundle with PyTorch: the gate of every build, and ``lvlm-export verify``.

At ratio 1.0 the chain's greedy answer must equal ``transformers.generate``; at every other ratio
that of the reference with the same reducers inside the HF model. Hidden states are compared at
every cut, so that a failure names the place. Decisions between scores that the arithmetic cannot tell
apart are reported as near ties (``check/ties.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from lvlm_export.check.chain_run import (
    Arrays,
    ChainRun,
    ParitySample,
    logits_along,
    reducer_steps,
    run_chain,
)
from lvlm_export.check.parity_report import REFERENCE, AnswerParity, ParityReport, StageParity
from lvlm_export.check.reference import Reference
from lvlm_export.check.reference_io import ReferenceRequest, Trace
from lvlm_export.check.ties import (
    Tie,
    differ,
    follow,
    reduced,
    relative_error,
    site_counts,
    token_ties,
)
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import BudgetPlan
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.golden import NEAR, first_difference, logit_gap
from lvlm_runtime.image import preprocess
from lvlm_runtime.image.anyres import MULTI, TILES, TileLayout
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.sequence import text_runs
from lvlm_runtime.request import layouts_for
from lvlm_runtime.session import Session

QUESTION = "What is in the picture?"
# Largest difference of a hidden state, relative to the largest value of the reference's.
LIMITS = {"float32": 1e-3, "float16": 5e-2}


def synthetic_samples(
    layouts: Sequence[TileLayout], count: int, seed: int = 0
) -> list[ParitySample]:
    """Seeded pictures of soft colour blobs, ``count`` per layout.

    Two at once for MULTI, and for every other sample of TILES, which takes one and several.
    """
    generator = np.random.default_rng(seed)
    samples = []
    for layout in layouts:
        size = (layout.image_width or 320, layout.image_height or 240)
        for number in range(count):
            several = layout.kind == MULTI or (layout.kind == TILES and number % 2 == 1)
            blobs = [
                Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)
                for _ in range(2 if several else 1)
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

    Raises:
        LvlmError: The bundle is of a version whose method reduced at other sites or to other counts.
    """
    check_same_reductions(session.bundle.manifest, plan)
    reference = Reference(checkpoint.directory, checkpoint.family, plan)
    gate = _Gate(session, plan, max_new_tokens)
    requests = [prepare_request(session, sample) for sample in samples]
    for budget in plan.budgets:
        for index, (sample, request) in enumerate(zip(samples, requests, strict=True)):
            expected, trace = reference.generate(
                request, budget, checkpoint.stop_ids, max_new_tokens
            )
            official = None
            if budget.ratio == 1.0:
                official = reference.generate_unreduced(
                    request, checkpoint.stop_ids, max_new_tokens
                )
            gate.compare(budget, index, sample, request.layout.name, expected, trace, official)
            advance(f"ratio {budget.ratio:g}, sample {index}")
    return gate.report()


def check_same_reductions(manifest: Manifest, plan: Plan) -> None:
    """LvlmError where a bundle does not reduce as its method does in this version."""
    had_budgets = {budget.ratio: budget for budget in manifest.budgets}
    for planned in plan.budgets:
        built = had_budgets[planned.ratio]
        pairs = [(built.vision, planned.vision)]
        for one, other in zip(built.layouts, planned.layouts, strict=True):
            before = () if one.projected is None else (one.projected,)
            pairs.append(((*before, *one.decoder), other.counts))
        for reductions, counts in pairs:
            had = [(each.site, each.tokens_in, each.tokens_out) for each in reductions]
            if had != [(each.site.name, each.tokens_in, each.tokens_out) for each in counts]:
                raise LvlmError(
                    f"at ratio {built.ratio:g} the bundle does not reduce as method"
                    f" {manifest.method} of this version does, so it was built by another version:"
                    " compare it with the build's own answers (verify --golden) or build it again"
                )


@dataclass
class _Gate:
    """Comparisons of one verification as they are made."""

    session: Session
    plan: Plan
    max_new_tokens: int
    errors: dict[tuple[float, str], float] = field(default_factory=dict)
    answers: list[AnswerParity] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)

    def __post_init__(self) -> None:
        precision = self.session.bundle.manifest.precision
        self.limit, self.near = LIMITS[precision], NEAR[precision]

    def report(self) -> ParityReport:
        """Everything that was compared."""
        stages = tuple(
            StageParity(ratio, stage, error, self.limit)
            for (ratio, stage), error in self.errors.items()
        )
        return ParityReport(stages, tuple(self.answers), tuple(self.ties))

    def compare(
        self,
        budget: BudgetPlan,
        index: int,
        sample: ParitySample,
        layout: str,
        expected: tuple[int, ...],
        trace: Trace,
        official: tuple[int, ...] | None,
    ) -> None:
        """One request at one budget; ``official`` is the answer of ``transformers.generate``."""
        ratio = budget.ratio
        run = run_chain(self.session, ratio, sample, self.max_new_tokens, {})
        given: dict[str, Arrays] = {}
        while (site := self._next_difference(ratio, sample, trace, run, given)) is not None:
            outputs = self._settle(budget, index, layout, site, trace, run)
            if outputs is None:
                break
            given[site] = outputs
            run = run_chain(self.session, ratio, sample, self.max_new_tokens, given)
        errors = compare_traces(trace, run.hidden)
        for stage, error in errors.items():
            self.errors[ratio, stage] = max(error, self.errors.get((ratio, stage), 0.0))
        ties: list[Tie] = []
        # Behind a fault other tokens are no news.
        if run.answer != expected and max(errors.values()) <= self.limit:
            along = logits_along(self.session, ratio, sample, expected, given)
            ties = token_ties(ratio, index, expected, trace.logits, along, self.near)
        self.ties += ties
        row = AnswerParity(ratio, index, REFERENCE, expected, run.answer, tuple(ties))
        self.answers.append(row)
        if official is not None:
            self._compare_official(row, official, trace)

    def _compare_official(self, row: AnswerParity, official: tuple[int, ...], trace: Trace) -> None:
        """The unreduced answer of ``transformers.generate``, which runs the same arithmetic."""
        ties, at = row.ties, first_difference(official, row.expected)
        if at == min(len(official), len(row.expected)):
            ties = ()  # one of them goes on where the other ended, which no tie explains
        elif at is not None:
            gap = abs(logit_gap(trace.logits[at], row.expected[at], official[at]))
            tie = Tie(row.ratio, row.sample, f"token {at}", 1, gap, NEAR["float32"])
            self.ties.append(tie)
            ties = (*row.ties, tie)
        self.answers.append(
            replace(row, source="transformers.generate", expected=official, ties=ties)
        )

    def _next_difference(
        self,
        ratio: float,
        sample: ParitySample,
        trace: Trace,
        run: ChainRun,
        given: dict[str, Arrays],
    ) -> str | None:
        """The first reducer that keeps other tokens than the reference's, and is not led yet."""
        for step in reducer_steps(self.session, ratio, sample.images):
            if step.name in given or step.name not in trace.hidden:
                continue
            got, expected = run.calls[step.name].outputs, trace.hidden[step.name]
            if reduced(got).shape != expected.shape:
                return None  # no tie: compare_traces says what it is
            if differ(got, expected, trace.places.get(step.name), self.limit):
                return step.name
        return None

    def _settle(
        self,
        budget: BudgetPlan,
        index: int,
        layout: str,
        site: str,
        trace: Trace,
        run: ChainRun,
    ) -> Arrays | None:
        """What the chain's reducer gives when it chooses as the reference; None for a fault."""
        count = site_counts(budget, layout)[site]
        call, kv_layout = run.calls[site], self.session.bundle.manifest.kv_layout
        followed = follow(self.plan, count, call, trace.decisions[site], kv_layout)
        if differ(call.outputs, reduced(followed.own), followed.own.get("places"), self.limit):
            return None  # the graph is not the module
        if differ(followed.led, trace.hidden[site], trace.places.get(site), self.limit):
            return None  # no choice is behind it
        tie = Tie(budget.ratio, index, site, followed.differing, followed.gap, self.near)
        self.ties.append(tie)
        return followed.led if tie.passed else None


def compare_traces(trace: Trace, seen: Arrays) -> dict[str, float]:
    """Relative error at every cut; a cut that one side lacks is an error of its own."""
    missing = set(trace.hidden) ^ set(seen)
    if missing:
        raise LvlmError(f"chain and reference do not have the same stages: {sorted(missing)}")
    errors = {}
    for name, expected in trace.hidden.items():
        got = seen[name]
        if got.shape != expected.shape:
            raise LvlmError(
                f"{name} has shape {got.shape} in the chain and {expected.shape} in PyTorch"
            )
        errors[name] = relative_error(got, expected)
    return errors


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
    fitting = layouts_for(layouts, len(sample.images))
    layout = preprocess.choose_layout(sample.images, spec, fitting)
    encoder = replace(encoder, marks=layout.marks)
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
