"""What a report says in words: the figures at its head, and the facts at its foot."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.report import Report
from lvlm_profiles.report.figures import BudgetFigures, StageTime
from lvlm_profiles.report.html.bars import plain_number


@dataclass(frozen=True)
class Tile:
    """A figure at the head of the page."""

    value: str
    unit: str
    text: str


@dataclass(frozen=True)
class StageRow:
    """A stage at every budget; None where a budget has no such stage."""

    name: str
    phase: str
    cells: tuple[StageTime | None, ...]


def headline_tiles(report: Report) -> list[Tile]:
    """The fastest budget against the reference."""
    fastest = min(report.budgets, key=lambda each: each.ttft_ms.summary.median)
    reference = report.budget(report.reference) or fastest
    median = fastest.ttft_ms.summary.median
    tiles = [Tile(plain_number(median), "ms", f"to the first token at ratio {fastest.ratio:g}")]
    if reference is not fastest:
        speedup = reference.ttft_ms.summary.median / median
        whole = f"{plain_number(reference.ttft_ms.summary.median)} ms"
        tiles.append(
            Tile(f"{speedup:.2f}", "x", f"faster than ratio {reference.ratio:g} ({whole})")
        )
    if fastest.tokens_per_s is not None:
        speed = fastest.tokens_per_s.summary.median
        tiles.append(Tile(plain_number(speed), "tokens/s", "after the first token"))
    if fastest.memory is not None:
        peak = fastest.memory.peak_bytes / 1e6
        tiles.append(Tile(f"{peak:,.0f}", "MB", f"peak memory at ratio {fastest.ratio:g}"))
    return tiles


def report_facts(report: Report) -> dict[str, dict[str, str]]:
    """Heading -> label -> text, for the tables at the end."""
    model, machine, request, how = report.model, report.machine, report.request, report.protocol
    pictures = ", ".join(f"{each.name} ({each.width}x{each.height})" for each in request.images)
    found = {
        "Model": {
            "name": model.name,
            "revision": model.revision or "none given",
            "family": model.family,
            "method": f"{model.method}, seed {model.seed}",
            "precision": f"{model.precision}, graphs for {model.target}",
            "weights": f"{model.weights_bytes / 1e6:,.1f} MB, stored once for all ratios",
            "checkpoint": model.checkpoint_key,
            "bundle": model.content_key,
            "built with": _versions(model.built_with),
        },
        "Machine": {
            "processor": f"{machine.processor}, {machine.cores} logical cores",
            "board": machine.board or "",
            "accelerator": machine.accelerator or "",
            "memory": f"{machine.memory_bytes / 1e9:.1f} GB",
            "system": machine.system,
            "driver": machine.driver or "",
            "power mode": machine.power_mode or "",
            "clocks": ", ".join(f"{name} {how}" for name, how in machine.clocks.items())
            or "not shown by the system",
            "graphs run on": f"{machine.execution}, {machine.backend}"
            + (f", {machine.threads} thread(s)" if machine.threads else ""),
            "libraries": _versions(machine.libraries),
            "fingerprint": machine.fingerprint,
        },
        "Request": {
            "question": request.prompt,
            "text tokens": str(request.text_tokens),
            "pictures": pictures or "none",
            "tiles": f"{request.tiles} ({request.layout})" if request.layout else "",
            "answer": f"{request.answer_tokens} tokens; stop tokens do not end it",
        },
        "Method": {
            "rounds": f"{how.rounds}, after {how.warmup_rounds} of warm-up; {how.order}",
            "warm-up": f"{how.warmup_rule}; {'settled' if how.stable else 'did not settle'}",
            "clock": how.clock,
            "first token": "from the call to the first token: the sum of its stages, host time"
            " between graph calls included",
            "stopwatch": "around calls for one token, against what they report: "
            + ", ".join(f"{b.ratio:g} {b.wall_check.difference:+.2%}" for b in report.budgets),
            "memory": "in a process of its own per ratio, which asks one request",
            "duration": f"{how.seconds:.1f} s",
            "written by": f"{report.tool}, {report.created}",
        },
    }
    start = report.startup
    found["Method"]["cold start"] = (
        f"loading {start.load_ms:.0f} ms; the process's very first request, at ratio"
        f" {start.cold_ratio:g}: {start.cold_ttft_ms:.0f} ms to the first token,"
        f" {start.cold_end_to_end_ms:.0f} ms to the last"
    )
    return {
        title: {key: text for key, text in rows.items() if text} for title, rows in found.items()
    }


def stage_rows(report: Report) -> list[StageRow]:
    """Every stage of every budget, in the order of the budget that has most."""
    longest = max(report.budgets, key=lambda each: len(each.stages))
    keys = [(stage.phase, stage.name) for stage in longest.stages]
    for budget in report.budgets:
        keys += [(s.phase, s.name) for s in budget.stages if (s.phase, s.name) not in keys]
    return [
        StageRow(name, phase, tuple(_stage(budget, phase, name) for budget in report.budgets))
        for phase, name in keys
    ]


def _stage(budget: BudgetFigures, phase: str, name: str) -> StageTime | None:
    found = (each for each in budget.stages if (each.phase, each.name) == (phase, name))
    return next(found, None)


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
