"""From what was timed to a report: stages, statistics, checks, memory, what the costs predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from statistics import median

from lvlm_profiles.devices.device import Device
from lvlm_profiles.missing import Missing
from lvlm_profiles.report import KIND, SCHEMA, Caution, Report, conditions
from lvlm_profiles.report.figures import (
    Accuracy,
    BudgetFigures,
    Energy,
    MemoryFigures,
    Metric,
    StageTime,
    StageTokens,
    Sweep,
    WallCheck,
)
from lvlm_profiles.report.subject import Machine, Protocol, Request, Startup
from lvlm_profiles.statistics import summarize
from lvlm_runtime.backends.clock import clock_of
from lvlm_runtime.profile import predicted
from lvlm_runtime.profile.memory_run import Readings
from lvlm_runtime.profile.rounds import Measurement, ProfilePlan, TimedAnswer, warmup_rule
from lvlm_runtime.profile.subject import describe_model, kv_cache_bytes, plain_types
from lvlm_runtime.session import Session


def build_report(
    session: Session,
    plan: ProfilePlan,
    found: Measurement,
    *,
    tool: str,
    machine: Machine,
    request: Request,
    load_ms: float,
    memory: Mapping[float, Readings | Missing],
    energy: Mapping[float, Energy | Missing],
    accuracy: Mapping[float, Accuracy],
    sweeps: Sequence[Sweep],
    device: Device | None,
    cautions: Sequence[Caution],
) -> Report:
    """All of it.

    Args:
        session: What was measured.
        plan: How.
        found: The timings.
        tool: Name and version of the program that writes the report.
        machine: Where.
        request: The question.
        load_ms: Time to load the bundle.
        memory: Ratio -> readings, or why there are none.
        energy: Ratio -> energy, or why there is none.
        accuracy: Ratio -> accuracy, where an eval result was given.
        sweeps: Latency over token counts; empty where not asked for.
        device: Device profile for the roofline; None for none.
        cautions: What was noticed while measuring.
    """
    manifest = session.bundle.manifest
    reference = max(plan.ratios)
    costs = predicted.predict(manifest, plan.ratios, reference, request, device)
    missing = {
        "memory": next(
            (each.reason for each in memory.values() if isinstance(each, Missing)), None
        ),
        "energy": next(
            (each.reason for each in energy.values() if isinstance(each, Missing)), None
        ),
        "accuracy": None if accuracy else "no eval result was given (--accuracy)",
        "sweep": None if sweeps else "not asked for (--sweep)",
        "predicted": costs.reason if isinstance(costs, Missing) else None,
        "roofline": _why_no_roofline(costs, device, manifest.precision),
    }
    budgets = tuple(
        _budget(
            session,
            ratio,
            found,
            request,
            _present(memory.get(ratio)),
            _present(energy.get(ratio)),
            accuracy.get(ratio),
            None if isinstance(costs, Missing) else costs[ratio],
        )
        for ratio in sorted(plan.ratios, reverse=True)
    )
    first_ratio, cold = next(iter(found.first.items()))
    return Report(
        kind=KIND,
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool=tool,
        model=describe_model(manifest),
        machine=machine,
        request=request,
        protocol=Protocol(
            rounds=len(found.samples[reference]),
            warmup_rounds=found.warmup_rounds,
            warmup_rule=warmup_rule(plan),
            stable=found.stable,
            order="every round asks each budget once and begins with another one",
            clock=clock_of(session.chain.backend).name,
            seconds=found.seconds,
        ),
        startup=Startup(load_ms, first_ratio, cold.ttft_ms, cold.end_to_end_ms),
        reference=reference,
        budgets=budgets,
        sweeps=tuple(sweeps),
        warnings=(*cautions, *_cautions(found, budgets)),
        not_measured={name: why for name, why in missing.items() if why is not None},
    )


def _why_no_roofline(
    costs: dict[float, predicted.Cost] | Missing, device: Device | None, precision: str
) -> str | None:
    """A device profile was given and has no rate; None otherwise."""
    if device is None or isinstance(costs, Missing):
        return None
    if all(cost.roofline_ms is not None for cost in costs.values()):
        return None
    return f"{device.name} has no published rate or bandwidth for {precision}"


def _present(value: object) -> object:
    """None for a reason."""
    return None if isinstance(value, Missing) else value


def _budget(
    session: Session,
    ratio: float,
    found: Measurement,
    request: Request,
    memory: object,
    energy: object,
    accuracy: Accuracy | None,
    cost: predicted.Cost | None,
) -> BudgetFigures:
    samples = found.samples[ratio]
    budget = session.bundle.budget(ratio)
    part = None if request.layout is None else budget.layout(request.layout)
    first = found.first[ratio]
    images, text = len(request.images), request.text_tokens
    kv_bytes = kv_cache_bytes(session, part, images, text, request.answer_tokens)
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
        wall_check=_wall_check(found.checks[ratio]),
        memory=_memory(memory, kv_bytes) if isinstance(memory, Readings) else None,
        energy=energy if isinstance(energy, Energy) else None,
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


def _cautions(found: Measurement, budgets: Sequence[BudgetFigures]) -> list[Caution]:
    """What the numbers themselves say against them."""
    wide = {f"time to first token at {each.ratio:g}": each.ttft_ms.summary for each in budgets}
    wide |= {
        f"time per token at {each.ratio:g}": each.tpot_ms.summary
        for each in budgets
        if each.tpot_ms is not None
    }
    off = {f"{each.ratio:g}": each.wall_check.difference for each in budgets}
    return [
        *conditions.unsettled(found.stable, found.warmup_rounds),
        *conditions.scattered(wide),
        *conditions.wall_difference(off),
    ]
