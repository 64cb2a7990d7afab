"""What changed from one report to another, and whether it is more than noise.

The rule: a change of a median counts when its 95 % bootstrap interval leaves zero out **and** it
is larger than 2 %, because samples of one process say nothing of what differs between two (memory
layout, clocks, temperature). Where a report has fewer than five samples, or one value, there is no
interval and nothing is called noise or not; a limit is then held against the change alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lvlm_profiles.errors import UsageError
from lvlm_profiles.report import Report
from lvlm_profiles.report.figures import BudgetFigures
from lvlm_profiles.statistics import median_change, percentile

LEAST_SAMPLES = 5
FLOOR = 0.02
# A stage is shown when it changed by this share of the time that it is a part of.
SHARE = 0.01
# Metrics of which more is better; of all others less is.
MORE_IS_BETTER = {"tokens_per_s", "accuracy"}
BETTER, WORSE, NOISE, UNKNOWN = "better", "worse", "within noise", "not judged"


@dataclass(frozen=True)
class Change:
    """One metric of one budget in both reports.

    Attributes:
        metric: ``ttft_ms`` …, or ``<phase>/<stage>`` in ms.
        ratio: The budget; None for what belongs to the whole report.
        before: Median in the first.
        after: Median in the second.
        change: ``after / before - 1``.
        low: Lower end of the change's 95 % interval; None without one.
        high: Upper end.
        verdict: ``better``, ``worse``, ``within noise`` or ``not judged``.
    """

    metric: str
    ratio: float | None
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    verdict: str

    @property
    def label(self) -> str:
        """``ttft_ms@0.33``."""
        return self.metric if self.ratio is None else f"{self.metric}@{self.ratio:g}"


@dataclass(frozen=True)
class Limit:
    """``METRIC[@RATIO]:LIMIT``: what a change must not exceed.

    Attributes:
        metric: Name of the metric.
        ratio: Of the budget; None for all.
        bound: Signed: the change that is still allowed, in the sign's direction.
        relative: The bound is a share and not in the metric's unit.
        text: As it was written.
    """

    metric: str
    ratio: float | None
    bound: float
    relative: bool
    text: str

    def broken_by(self, change: Change) -> bool:
        """The change goes beyond the limit, and is not noise."""
        size = change.change if self.relative else change.after - change.before
        beyond = size > self.bound if self.bound >= 0 else size < self.bound
        return beyond and change.verdict != NOISE


def parse_limit(text: str) -> Limit:
    """Read ``ttft_ms:+5%``, ``tokens_per_s@0.33:-3%`` or ``peak_bytes:+20000000``.

    Raises:
        UsageError: Not a limit.
    """
    match = re.fullmatch(r"([\w./@-]+?)(?:@(\d*\.?\d+))?:([+-]\d+(?:\.\d+)?)(%?)", text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a limit; write METRIC[@RATIO]:+5%, or :+3 in the metric's own unit"
        )
    number, relative = float(match[3]), match[4] == "%"
    ratio = None if match[2] is None else float(match[2])
    return Limit(match[1], ratio, number / 100 if relative else number, relative, text)


def differences(before: Report, after: Report) -> list[str]:
    """Why two reports do not compare; empty where they do."""
    pairs = {
        "the checkpoint": (before.model.checkpoint_key[:12], after.model.checkpoint_key[:12]),
        "the model": (before.model.name, after.model.name),
        "the machine": (_place(before), _place(after)),
        "the answer's length": (before.request.answer_tokens, after.request.answer_tokens),
        "the prompt's length": (before.request.text_tokens, after.request.text_tokens),
        "the pictures' tiles": (before.request.tiles, after.request.tiles),
    }
    return [f"{what} ({a} and {b})" for what, (a, b) in pairs.items() if a != b]


def other_changes(before: Report, after: Report) -> list[str]:
    """What else differs and may be the reason for a change."""
    pairs = {
        "method": (before.model.method, after.model.method),
        "precision": (before.model.precision, after.model.precision),
        "target": (before.model.target, after.model.target),
        "tool": (before.tool, after.tool),
        "backend": (before.machine.backend, after.machine.backend),
        "threads": (before.machine.threads, after.machine.threads),
        "driver": (before.machine.driver, after.machine.driver),
        "power mode": (before.machine.power_mode, after.machine.power_mode),
        "bundle": (before.model.content_key[:12], after.model.content_key[:12]),
    }
    libraries = sorted(before.machine.libraries.keys() | after.machine.libraries.keys())
    for name in libraries:
        versions = (before.machine.libraries.get(name), after.machine.libraries.get(name))
        pairs[name] = versions
    return [f"{what} {a or 'none'} → {b or 'none'}" for what, (a, b) in pairs.items() if a != b]


def _place(report: Report) -> str:
    where = report.machine.accelerator or report.machine.processor
    return f"{where} {report.machine.fingerprint}, {report.machine.execution}"


def compare_reports(before: Report, after: Report) -> list[Change]:
    """Every metric that both reports have, whole reports first, then budget by budget."""
    loads = (before.startup.load_ms,), (after.startup.load_ms,)
    changes = [_change("load_ms", None, *loads)]
    for budget in before.budgets:
        other = after.budget(budget.ratio)
        if other is None:
            continue
        values = dict(_metrics(other))
        for name, samples in _metrics(budget):
            if name in values:
                changes.append(_change(name, budget.ratio, samples, values[name]))
    return changes


def _metrics(budget: BudgetFigures) -> Iterator[tuple[str, Sequence[float]]]:
    yield "ttft_ms", budget.ttft_ms.samples
    for name in ("tpot_ms", "tokens_per_s"):
        metric = getattr(budget, name)
        if metric is not None:
            yield name, metric.samples
    yield "end_to_end_ms", budget.end_to_end_ms.samples
    yield "first_request_ms", (budget.first_request_ms,)
    if budget.memory is not None:
        yield "peak_bytes", (float(budget.memory.peak_bytes),)
    if budget.energy is not None:
        yield "joules_per_request", (budget.energy.joules_per_request,)
    if budget.accuracy is not None:
        yield "accuracy", (budget.accuracy.accuracy,)
    for stage in budget.stages:
        yield f"{stage.phase}/{stage.name}", stage.samples_ms


def _change(
    metric: str, ratio: float | None, before: Sequence[float], after: Sequence[float]
) -> Change:
    old, new = percentile(sorted(before), 50), percentile(sorted(after), 50)
    if min(len(before), len(after)) < LEAST_SAMPLES:
        change = (new / old - 1) if old else 0.0
        return Change(metric, ratio, old, new, change, None, None, UNKNOWN)
    found = median_change(before, after)
    within = found.low <= 0 <= found.high or abs(found.change) <= FLOOR
    is_better = (found.change > 0) == (metric in MORE_IS_BETTER)
    verdict = NOISE if within else BETTER if is_better else WORSE
    return Change(metric, ratio, old, new, found.change, found.low, found.high, verdict)


def broken_limits(changes: Sequence[Change], limits: Sequence[Limit]) -> list[tuple[Limit, Change]]:
    """Limits that do not hold, each with the change that breaks it.

    Raises:
        UsageError: A limit on something that the reports do not both have; names what they have.
    """
    found = []
    for limit in limits:
        held = [change for change in changes if _meant(limit, change)]
        if not held:
            known = ", ".join(dict.fromkeys(change.metric for change in changes))
            raise UsageError(f"--fail-if {limit.text}: both reports have only {known}")
        found += [(limit, change) for change in held if limit.broken_by(change)]
    return found


def is_notable(change: Change, changes: Sequence[Change]) -> bool:
    """A metric, or a stage that changed clearly and by 1 % of the time that it is a part of."""
    phase, _, stage = change.metric.partition("/")
    if not stage:
        return True
    whole = "tpot_ms" if phase == "decode" else "ttft_ms"
    sizes = [each.before for each in changes if (each.metric, each.ratio) == (whole, change.ratio)]
    is_large = not sizes or abs(change.after - change.before) >= SHARE * sizes[0]
    return change.verdict != NOISE and is_large


def _meant(limit: Limit, change: Change) -> bool:
    if limit.metric != change.metric:
        return False
    return limit.ratio is None or (
        change.ratio is not None and abs(limit.ratio - change.ratio) < 1e-9
    )
