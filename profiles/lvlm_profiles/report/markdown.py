"""``report.md``: a profile for issues, pull requests and READMEs."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_profiles.report import Report
from lvlm_profiles.report.figures import BudgetFigures
from lvlm_profiles.report.terminal import visible

DASH = "-"


def to_markdown(report: Report) -> str:
    """The table of all ratios, the stages, the memory, and how it was measured."""
    model, machine, request = report.model, report.machine, report.request
    where = machine.board or machine.accelerator or machine.processor
    blocks = [
        f"# {model.name} with {model.method} on {where}",
        f"{machine.backend} on {machine.execution}, {model.precision}"
        + (f", power mode {machine.power_mode}" if machine.power_mode else "")
        + f"; {request.text_tokens} text tokens, {len(request.images)} picture(s), answers of"
        f" {request.answer_tokens} tokens; medians of {report.protocol.rounds} interleaved rounds"
        f" after {report.protocol.warmup_rounds} of warm-up; {report.created}.",
        *_cautions(report),
        _table(_BUDGET_HEAD, [_budget_row(report, budget) for budget in report.budgets]),
        *(f"{what}: not measured, {why}." for what, why in report.not_measured.items()),
        "## Stages, median ms",
        _stage_table(report),
        *_memory(report),
        *_energy(report),
        *_sweeps(report),
        "## Tokens",
        *(_tokens(budget) for budget in report.budgets),
        "## Provenance",
        _provenance(report),
    ]
    return visible("\n\n".join(blocks)) + "\n"


_BUDGET_HEAD = (
    "ratio",
    "achieved",
    "visual tokens",
    "TTFT ms",
    "p90 ms",
    "speed-up",
    "by FLOPs",
    "ms/token",
    "tokens/s",
    "end to end ms",
    "peak MB",
    "J/request",
    "accuracy",
)


def _budget_row(report: Report, budget: BudgetFigures) -> list[str]:
    reference = report.budget(report.reference) or budget
    speedup = reference.ttft_ms.summary.median / budget.ttft_ms.summary.median
    share, memory, energy = budget.accuracy, budget.memory, budget.energy
    speed = budget.tokens_per_s
    return [
        f"{budget.ratio:g}",
        f"{budget.achieved:.3f}",
        str(budget.visual_tokens[-1].tokens) if budget.visual_tokens else DASH,
        f"{budget.ttft_ms.summary.median:.1f}",
        f"{budget.ttft_ms.summary.p90:.1f}",
        f"{speedup:.2f}x",
        DASH if budget.predicted is None else f"{budget.predicted.speedup:.2f}x",
        DASH if budget.tpot_ms is None else f"{budget.tpot_ms.summary.median:.2f}",
        DASH if speed is None else f"{speed.summary.median:.1f}",
        f"{budget.end_to_end_ms.summary.median:.1f}",
        DASH if memory is None else f"{memory.peak_bytes / 1e6:.1f}",
        DASH if energy is None else f"{energy.joules_per_request:.2f}",
        DASH
        if share is None
        else f"{100 * share.accuracy:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})",
    ]


def _cautions(report: Report) -> list[str]:
    if not report.warnings:
        return []
    lines = "\n".join(f"- {each.message}" for each in report.warnings)
    return [f"What makes these figures less sure:\n\n{lines}"]


def _stage_table(report: Report) -> str:
    keys: list[tuple[str, str]] = []
    for budget in sorted(report.budgets, key=lambda each: -len(each.stages)):
        keys += [(s.phase, s.name) for s in budget.stages if (s.phase, s.name) not in keys]
    rows = []
    for phase, name in keys:
        cells = []
        for budget in report.budgets:
            found = [s for s in budget.stages if (s.phase, s.name) == (phase, name)]
            cells.append(f"{found[0].summary.median:.3f}" if found else DASH)
        rows.append([phase, name, *cells])
    return _table(("phase", "stage", *(f"{each.ratio:g}" for each in report.budgets)), rows)


def _memory(report: Report) -> list[str]:
    known = [(each.ratio, each.memory) for each in report.budgets if each.memory is not None]
    if not known:
        return []
    head = ("ratio", "peak", "interpreter", "weights", "KV cache", "activations", "peak at load")
    rows = [
        [
            f"{ratio:g}",
            *(
                f"{value / 1e6:.1f}"
                for value in (
                    memory.peak_bytes,
                    memory.process_bytes,
                    memory.weights_bytes,
                    memory.kv_cache_bytes,
                    memory.activations_bytes,
                    memory.load_peak_bytes,
                )
            ),
        ]
        for ratio, memory in known
    ]
    return [f"## Memory, MB ({known[0][1].kind})", _table(head, rows)]


def _energy(report: Report) -> list[str]:
    known = [(each.ratio, each.energy) for each in report.budgets if each.energy is not None]
    if not known:
        return []
    rows = [
        [
            f"{ratio:g}",
            f"{energy.joules_per_request:.2f}",
            f"{energy.joules_per_token:.3f}",
            f"{energy.mean_watts:.1f}",
            DASH if energy.idle_watts is None else f"{energy.idle_watts:.1f}",
            DASH if energy.temperature_c is None else f"{energy.temperature_c:.0f}",
        ]
        for ratio, energy in known
    ]
    head = ("ratio", "J/request", "J/token", "mean W", "idle W", "°C")
    return [f"## Energy ({known[0][1].source}: {known[0][1].scope})", _table(head, rows)]


def _sweeps(report: Report) -> list[str]:
    lines = []
    for each in report.sweeps:
        bend = f"knee at {each.knee} tokens" if each.knee else "no knee"
        jumps = f", jumps at {', '.join(map(str, each.steps))}" if each.steps else ""
        lines.append(f"- {each.stage}: {bend}{jumps}")
    return ["## Latency over tokens", "\n".join(lines)] if lines else []


def _tokens(budget: BudgetFigures) -> str:
    path = " → ".join(f"{each.stage} {each.tokens}" for each in budget.visual_tokens)
    return f"- ratio {budget.ratio:g}: {path or 'no picture'}"


def _provenance(report: Report) -> str:
    model, machine = report.model, report.machine
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    worst = max((abs(each.wall_check.difference) for each in report.budgets), default=0.0)
    lines = (
        f"bundle {model.content_key}, checkpoint {model.checkpoint_key}",
        f"{machine.processor}, {machine.cores} cores, {machine.system}"
        + (f", driver {machine.driver}" if machine.driver else ""),
        libraries,
        f"a stopwatch around the calls differs from the reported time to first token by at most"
        f" {worst:.1%}",
        report.tool,
    )
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
