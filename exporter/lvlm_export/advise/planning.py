"""From methods, ratios and precisions to the planner's candidates, and what became of them.

``PlanBasis`` is what is asked, ``Advice`` the answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lvlm_export.advise.subject import Subject
from lvlm_export.plan.fit import check_fit, check_rank
from lvlm_export.reduction import load_method
from lvlm_export.reduction.budget import BudgetPlan
from lvlm_export.reduction.method import Method
from lvlm_export.reduction.schedule import plan_budget
from lvlm_profiles.cost.reducers import is_known
from lvlm_profiles.cost.roofline import PUBLISHED
from lvlm_profiles.planner.calibration import Calibration
from lvlm_profiles.planner.judge import (
    Candidate,
    Goal,
    Speed,
    Verdict,
    best_verdict,
    judge_candidate,
)
from lvlm_profiles.shapes.dims import Cut, TokenPath
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.anyres import TILES

UNREDUCED = "none"


@dataclass(frozen=True)
class Choices:
    """What to try.

    Attributes:
        methods: Reduction methods.
        ratios: Shares of visual tokens kept.
        search: Find the largest ratio that fits too, for each method.
        precisions: Element types.
        text_tokens: Text of the prompt.
        answer_tokens: Answer, its first token included.
    """

    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    search: bool
    precisions: tuple[str, ...]
    text_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Refused:
    """A method and ratio that this model cannot have."""

    method: str
    precision: str
    ratio: float
    reason: str


Row = Verdict | Refused


@dataclass(frozen=True)
class PlanBasis:
    """What is planned, and what its estimates stand on.

    Attributes:
        subject: The model.
        choices: What to try.
        goal: What is to be met, and on which device.
        calibration: Fit of the estimates to a report; None for what is published.
    """

    subject: Subject
    choices: Choices
    goal: Goal
    calibration: Calibration | None

    @property
    def speed(self) -> Speed:
        """How fast the device is taken to be."""
        return Speed(PUBLISHED) if self.calibration is None else self.calibration.speed


@dataclass(frozen=True)
class Advice:
    """What became of every combination of a basis, the unreduced model first."""

    basis: PlanBasis
    rows: tuple[Row, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        """The combinations that this model can have."""
        return [row for row in self.rows if isinstance(row, Verdict)]

    @cached_property
    def best(self) -> Verdict | None:
        """The one to build; None where none fits."""
        return best_verdict(self.verdicts)


def judge_all(basis: PlanBasis) -> Advice:
    """Estimate every combination."""
    subject, choices, goal, speed = basis.subject, basis.choices, basis.goal, basis.speed

    def judged(method: str, ratio: float, precision: str) -> Row:
        try:
            candidate = make_candidate(subject, choices, method, ratio, precision)
        except UsageError as error:
            return Refused(method, precision, ratio, str(error).split(";")[0])
        return judge_candidate(subject.dims, candidate, goal, speed)

    rows: list[Row] = []
    for precision in choices.precisions:
        # Ratio 1 is the same model whatever the method.
        whole = judged(UNREDUCED, 1.0, precision)
        rows.append(whole)
        for method in choices.methods:
            tried = {
                ratio: judged(method, ratio, precision) for ratio in choices.ratios if ratio < 1
            }
            if choices.search and not fits(whole):
                steps = (judged(method, step / 100, precision) for step in range(99, 0, -1))
                largest = next((row for row in steps if fits(row)), None)
                if isinstance(largest, Verdict):
                    tried[largest.candidate.ratio] = largest
            rows += [tried[ratio] for ratio in sorted(tried, reverse=True)]
    return Advice(basis, tuple(rows))


def fits(row: Row) -> bool:
    """It is possible and meets everything."""
    return isinstance(row, Verdict) and row.fits


def make_candidate(
    subject: Subject, choices: Choices, method: str, ratio: float, precision: str
) -> Candidate:
    """Count the tokens of one picture; UsageError where the model cannot have it."""
    loaded = load_method(method)
    if ratio < 1:
        check_fit(loaded, subject.geometry, subject.dims.vision.prefix, subject.packed)
    budget = plan_budget(ratio, loaded, subject.geometry)
    check_rank(loaded, budget, subject.dims.text.width)
    return candidate_of(subject, choices, loaded, budget, precision)


def candidate_of(
    subject: Subject, choices: Choices, method: Method, budget: BudgetPlan, precision: str
) -> Candidate:
    """What one picture takes everywhere under a budget, which may be placed by hand."""
    layout = subject.geometry.layouts[0]
    part = budget.layouts[0]
    kept = budget.kept_per_tile(subject.geometry.vision_tokens)
    path = TokenPath(
        group=subject.group,
        in_order=layout.kind == TILES,
        method=method.name,
        images=1,
        tiles=layout.tiles,
        text_tokens=choices.text_tokens,
        answer_tokens=choices.answer_tokens,
        image_tokens=subject.geometry.visual_tokens(layout, kept),
        packed=subject.packed,
        cuts=_cuts(budget),
        condensed=subject.condensed,
        query_tokens=choices.text_tokens if subject.reads_text else 0,
        sized=method.sizes_in_decoder and budget.ratio < 1,
    )
    return Candidate(method.name, precision, budget.ratio, part.achieved, path)


def unknown_costs(methods: Sequence[str]) -> list[str]:
    """Methods whose reducers the cost model counts as a gather."""
    return [method for method in methods if not is_known(method)]


def build_command(
    subject: Subject, candidate: Candidate, device: str, model: str, image_size: str | None
) -> str:
    """What to type to build a candidate."""
    words = ["lvlm-export", "build", "--model", model, "--ratio", f"{candidate.ratio:g}"]
    if candidate.method != UNREDUCED:
        words += ["--method", candidate.method]
    words += ["--target", device, "--precision", candidate.precision]
    if image_size is not None:
        words += ["--image-size", image_size]
    return shlex.join(words)


def vision_tokens(subject: Subject, path: TokenPath) -> list[int]:
    """Patch tokens of a tile, from the first vision layer to the projector."""
    return [
        subject.dims.vision.tokens // subject.group,
        *(cut.tokens_out for cut in path.at("pixels", "vision", "features")),
    ]


def decoder_tokens(path: TokenPath) -> list[int]:
    """Visual tokens of an image, from the projector to the decoder's last layer."""
    return [path.image_tokens, *(cut.tokens_out for cut in path.at("projected", "decoder"))]


def row_record(subject: Subject, row: Row) -> dict[str, Any]:
    """A row as plain JSON types."""
    if isinstance(row, Refused):
        return {
            "method": row.method,
            "precision": row.precision,
            "ratio": row.ratio,
            "fits": False,
            "reasons": [row.reason],
        }
    candidate, need, times = row.candidate, row.need, row.estimate
    return {
        "method": candidate.method,
        "precision": candidate.precision,
        "ratio": candidate.ratio,
        "achieved_ratio": candidate.achieved,
        "vision_tokens_per_tile": vision_tokens(subject, candidate.path),
        "visual_tokens_per_image": decoder_tokens(candidate.path),
        "estimated_ttft_ms": None if times is None else times.ttft_ms,
        "estimated_vision_ms": None if times is None else times.phase_ms("vision"),
        "estimated_prefill_ms": None if times is None else times.phase_ms("prefill"),
        "estimated_tpot_ms": None if times is None else times.tpot_ms,
        "memory_bytes": {
            "weights": need.weights,
            "kernels": need.kernels,
            "kv_cache": need.kv_cache,
            "activations": need.activations,
            "total": need.total,
        },
        "fits": row.fits,
        "reasons": list(row.reasons),
    }


def _cuts(budget: BudgetPlan) -> tuple[Cut, ...]:
    counts = (*budget.vision, *budget.layouts[0].counts)
    return tuple(
        Cut(count.site.stage, count.site.layer, count.tokens_in, count.tokens_out)
        for count in counts
    )
