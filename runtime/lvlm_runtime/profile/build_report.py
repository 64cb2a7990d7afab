"""From what was found to a report: stages, statistics, checks, memory, what the costs predict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from statistics import median

from lvlm_profiles.missing import Missing
from lvlm_profiles.report import KIND, SCHEMA, Caution, Report, conditions
from lvlm_profiles.report.figures import (
    BudgetFigures,
    MemoryFigures,
    Metric,
    StageTime,
    StageTokens,
    WallCheck,
)
from lvlm_profiles.report.subject import Protocol, Startup
from lvlm_profiles.statistics import summarize
from lvlm_runtime import __version__
from lvlm_runtime.backends.clock import clock_of
from lvlm_runtime.profile.findings import Findings
from lvlm_runtime.profile.memory_run import Readings
from lvlm_runtime.profile.options import ProfileOptions
from lvlm_runtime.profile.rounds import Measurement, TimedAnswer, warmup_rule
from lvlm_runtime.profile.subject import describe_model, kv_cache_bytes, plain_types
from lvlm_runtime.session import Session

# The distribution that all three packages are part of.
TOOL = f"lvlm-export {__version__}"


def build_report(session: Session, options: ProfileOptions, findings: Findings) -> Report:
    """A report of the schema that this version writes.

    Args:
        session: What was measured.
        options: How; ``for_bundle`` of the session's bundle.
        findings: Everything that was found.
    """
    timings, reference = findings.timings, max(options.ratios)
    ratios = sorted(options.ratios, reverse=True)
    budgets = tuple(_budget(session, findings, ratio) for ratio in ratios)
    first_ratio, cold = next(iter(timings.first.items()))
    return Report(
        kind=KIND,
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool=TOOL,
        model=describe_model(session.bundle.manifest),
        machine=findings.machine,
        request=findings.request,
        protocol=Protocol(
            rounds=len(timings.samples[reference]),
            warmup_rounds=timings.warmup_rounds,
            warmup_rule=warmup_rule(options),
            stable=timings.stable,
            order="every round asks each budget once and begins with another one",
            clock=clock_of(session.chain.backend).name,
            seconds=timings.seconds,
        ),
        startup=Startup(findings.load_ms, first_ratio, cold.ttft_ms, cold.end_to_end_ms),
        reference=reference,
        budgets=budgets,
        sweeps=() if isinstance(findings.sweeps, Missing) else findings.sweeps,
        warnings=(*findings.cautions, *_cautions(timings, budgets)),
        not_measured=findings.not_measured(),
    )


def _budget(session: Session, findings: Findings, ratio: float) -> BudgetFigures:
    timings, request = findings.timings, findings.request
    samples, first = timings.samples[ratio], timings.first[ratio]
    budget = session.bundle.budget(ratio)
    part = None if request.layout is None else budget.layout(request.layout)
    images, text = len(request.images), request.text_tokens
    kv_bytes = kv_cache_bytes(session, part, images, text, request.answer_tokens)
    memory, energy = findings.memory[ratio], findings.energy[ratio]
    accuracy = None if isinstance(findings.accuracy, Missing) else findings.accuracy.get(ratio)
    cost = None if isinstance(findings.costs, Missing) else findings.costs[ratio]
    ttft = [sample.ttft_ms for sample in samples]
    tpot = [sample.tpot_ms for sample in samples if sample.tpot_ms is not None]
    return BudgetFigures(
        ratio=ratio,
        achieved=1.0 if part is None else part.achieved,
        visual_tokens=tuple(StageTokens(*each) for each in first.generation.visual_tokens),
        path=None if cost is None else plain_types(cost.path),
        prompt_tokens=first.generation.prompt_tokens,
        first_request_ms=first.ttft_ms,
        ttft_ms=_metric(ttft),
        tpot_ms=_metric(tpot) if tpot else None,
        tokens_per_s=_metric([1e3 / each for each in tpot]) if tpot else None,
        end_to_end_ms=_metric([sample.end_to_end_ms for sample in samples]),
        stages=_stages(samples),
        wall_check=_wall_check(timings.checks[ratio]),
        memory=None if isinstance(memory, Missing) else _memory(memory, kv_bytes),
        energy=None if isinstance(energy, Missing) else energy,
        accuracy=accuracy,
        predicted=None if cost is None else cost.beside(median(ttft)),
    )


def _metric(values: Sequence[float]) -> Metric:
    return Metric(tuple(values), summarize(values))


def _stages(samples: Sequence[TimedAnswer]) -> tuple[StageTime, ...]:
    """In the order they run, the host's own time behind the others of its phase."""
    rows = [sample.stages() for sample in samples]
    stages = []
    for phase, name in rows[0]:
        times = [row[phase, name][1] for row in rows]
        tokens = rows[0][phase, name][0]
        stages.append(StageTime(name, phase, tokens, tuple(times), summarize(times)))
    return tuple(stages)


def _wall_check(pairs: Sequence[tuple[float, float]]) -> WallCheck:
    return WallCheck(
        stopwatch_ms=tuple(stopwatch for stopwatch, _ in pairs),
        reported_ms=tuple(reported for _, reported in pairs),
        difference=median(stopwatch / reported - 1 for stopwatch, reported in pairs),
    )


def _memory(readings: Readings, kv_bytes: int) -> MemoryFigures:
    loaded = readings.loaded - readings.before
    return MemoryFigures(
        kind=readings.kind,
        peak_bytes=readings.peak,
        load_peak_bytes=readings.load_peak,
        process_bytes=readings.before,
        weights_bytes=loaded,
        kv_cache_bytes=kv_bytes,
        activations_bytes=readings.peak - readings.loaded - kv_bytes,
    )


def _cautions(timings: Measurement, budgets: Sequence[BudgetFigures]) -> list[Caution]:
    """What the numbers themselves say against them."""
    wide = {f"time to first token at {each.ratio:g}": each.ttft_ms.summary for each in budgets}
    wide |= {
        f"time per token at {each.ratio:g}": each.tpot_ms.summary
        for each in budgets
        if each.tpot_ms is not None
    }
    off = {f"{each.ratio:g}": each.wall_check.difference for each in budgets}
    return [
        *conditions.unsettled(timings.stable, timings.warmup_rounds),
        *conditions.scattered(wide),
        *conditions.wall_difference(off),
    ]
