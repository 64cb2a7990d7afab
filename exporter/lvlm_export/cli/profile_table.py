"""A profile for people at a terminal: one table, and lines on how far to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.cli.console import new_table, say, show_table, size

if TYPE_CHECKING:
    from lvlm_profiles.report import Report
    from lvlm_profiles.report.figures import BudgetFigures


def show_report(report: Report) -> None:
    """Print a report."""
    for label, text in headline(report).items():
        say(f"{label:<10}{text}")
    table = new_table(*COLUMNS, right=COLUMNS)
    for budget in report.budgets:
        table.add_row(*row(report, budget))
    show_table(table, LEAVE)
    for line in (*notes(report), *(f"warning: {each.message}" for each in report.warnings)):
        say(line)


COLUMNS = (
    "ratio",
    "tokens",
    "TTFT ms",
    "p90",
    "speed-up",
    "by FLOPs",
    "ms/token",
    "tokens/s",
    "end to end ms",
    "peak memory",
    "J/request",
    "accuracy",
)

# Columns that leave a narrow terminal, the first to go first.
LEAVE = ("end to end ms", "tokens/s", "p90", "peak memory", "by FLOPs", "J/request", "ms/token")


def headline(report: Report) -> dict[str, str]:
    """What was measured, where and how."""
    model, machine, protocol = report.model, report.machine, report.protocol
    where = machine.accelerator or machine.processor
    mode = f", power mode {machine.power_mode}" if machine.power_mode else ""
    start = report.startup
    return {
        "model": f"{model.name}, {model.method}, {model.precision} for {model.target}",
        "device": f"{machine.board or where}, {machine.backend} on {machine.execution}{mode}",
        "request": f"{report.request.text_tokens} text tokens, {len(report.request.images)}"
        f" picture(s), answers of {report.request.answer_tokens} tokens",
        "method": f"{protocol.rounds} interleaved rounds after {protocol.warmup_rounds} of warm-up"
        f" ({protocol.clock})",
        "cold": f"loading {start.load_ms:.0f} ms, very first request at {start.cold_ratio:g}:"
        f" TTFT {start.cold_ttft_ms:.0f} ms",
    }


def row(report: Report, budget: BudgetFigures) -> tuple[str, ...]:
    """One budget; medians, and a dash for what was not measured."""
    reference = report.budget(report.reference)
    speedup = 1.0
    if reference is not None:
        speedup = reference.ttft_ms.summary.median / budget.ttft_ms.summary.median
    tokens = budget.visual_tokens[-1].tokens if budget.visual_tokens else None
    return (
        f"{budget.ratio:g}",
        "-" if tokens is None else str(tokens),
        f"{budget.ttft_ms.summary.median:.1f}",
        f"{budget.ttft_ms.summary.p90:.1f}",
        f"{speedup:.2f}x",
        "-" if budget.predicted is None else f"{budget.predicted.speedup:.2f}x",
        "-" if budget.tpot_ms is None else f"{budget.tpot_ms.summary.median:.2f}",
        "-" if budget.tokens_per_s is None else f"{budget.tokens_per_s.summary.median:.1f}",
        f"{budget.end_to_end_ms.summary.median:.1f}",
        "-" if budget.memory is None else size(budget.memory.peak_bytes),
        "-" if budget.energy is None else f"{budget.energy.joules_per_request:.2f}",
        "-" if budget.accuracy is None else f"{100 * budget.accuracy.accuracy:.1f} %",
    )


def notes(report: Report) -> list[str]:
    """What the table does not show: the check against a stopwatch, the knees, what is missing."""
    worst = max((abs(each.wall_check.difference) for each in report.budgets), default=0.0)
    lines = [
        f"medians; speed-up against {report.reference:g}; a stopwatch around the calls differs by"
        f" at most {worst:.1%}"
    ]
    for sweep in report.sweeps:
        bend = f"bends at {sweep.knee} tokens" if sweep.knee else "has no knee"
        jumps = f", jumps at {', '.join(map(str, sweep.steps))}" if sweep.steps else ""
        lines.append(f"latency of {sweep.stage} over tokens {bend}{jumps}")
    for budget in report.budgets:
        reached = None if budget.predicted is None else budget.predicted.roofline_share
        if budget.predicted is not None and reached is not None:
            lines.append(
                f"ratio {budget.ratio:g} reaches {reached:.0%} of the roofline of"
                f" {budget.predicted.device} ({budget.predicted.roofline_ms:.1f} ms, an estimate)"
            )
    lines += [f"{what}: not measured, {why}" for what, why in report.not_measured.items()]
    return lines
