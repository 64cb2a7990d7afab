"""What ``lvlm-export plan`` shows: the basis of the estimates, one table, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lvlm_export.advise.planning import (
    UNREDUCED,
    Advice,
    Choices,
    PlanBasis,
    Refused,
    decoder_tokens,
    row_record,
    unknown_costs,
    vision_tokens,
)
from lvlm_profiles.cost.memory import free_bytes
from lvlm_profiles.cost.request import weight_elements
from lvlm_profiles.planner.calibration import Calibration
from lvlm_profiles.planner.judge import nearest_verdict

if TYPE_CHECKING:
    from rich.table import Table

# Columns that leave a narrow terminal, the first to go first.
LEAVE = (
    *("kept", "vision", "prefill", "vision, per tile", "decoder, per image"),
    *("precision", "memory", "TPOT ms"),
)
NUMBERS = ("ratio", "kept", "TTFT ms", "vision", "prefill", "TPOT ms", "memory")


def basis_lines(basis: PlanBasis) -> Iterator[str]:
    """Lines on what the estimates stand on."""
    subject, choices, fitted = basis.subject, basis.choices, basis.calibration
    device, layout = basis.goal.device, subject.geometry.layouts[0]
    free = free_bytes(device)
    has = "memory not known" if free is None else f"{free / 1e9:.1f} GB free for it"
    yield f"model   {subject.name}, {weight_elements(subject.dims) / 1e6:,.1f} million parameters"
    yield f"device  {device.title}, {has}"
    tiles = "one view" if layout.tiles == 1 else f"{layout.tiles} tiles"
    yield (
        f"request one picture ({tiles}), {choices.text_tokens} text tokens,"
        f" {choices.answer_tokens} answer tokens"
    )
    if fitted is None:
        yield f"speed   ESTIMATED from shapes and the device profile; {basis.speed.shares.source}"
        return
    fit = fitted.fit
    yield (
        f"speed   ESTIMATED, fitted to {fitted.stages} stages of {fitted.source}: error"
        f" {100 * fit.error:.1f} %, worst {100 * fit.worst:+.1f} % at {fit.worst_stage};"
        f" {fit.shares.call_ms:.2f} ms of every graph call are fixed"
    )


def plan_table(advice: Advice) -> Table:
    """One row per combination."""
    from lvlm_export.cli.console import new_table

    subject = advice.basis.subject
    columns = ("method", "precision", *NUMBERS[:2], "vision, per tile", "decoder, per image")
    table = new_table(*columns, *NUMBERS[2:], "verdict", right=NUMBERS)
    for row in advice.rows:
        if isinstance(row, Refused):
            blanks = [""] * (len(columns) - 3 + len(NUMBERS[2:]))
            table.add_row(row.method, row.precision, f"{row.ratio:g}", *blanks, row.reason)
            continue
        candidate, times = row.candidate, row.estimate
        figures = ["?"] * 4
        if times is not None:
            parts = (times.ttft_ms, times.phase_ms("vision"), times.phase_ms("prefill"))
            figures = [milliseconds(value) for value in (*parts, times.tpot_ms)]
        table.add_row(
            "unreduced" if candidate.method == UNREDUCED else candidate.method,
            candidate.precision,
            f"{candidate.ratio:g}",
            f"{candidate.achieved:.3f}",
            arrows(vision_tokens(subject, candidate.path)),
            arrows(decoder_tokens(candidate.path)),
            *figures,
            f"{row.need.total / 1e9:.2f} GB",
            "fits" if row.fits else "; ".join(row.reasons),
        )
    return table


def plan_notes(choices: Choices) -> list[str]:
    """What the estimates leave out."""
    lines = [
        "Times and memory are estimates: token counts, weights and caches follow from the shapes;"
        " preparing the picture and the tokenizer are not in TTFT, and on a real device latency is"
        " stepped over the token count. lvlm-export profile measures."
    ]
    unknown = unknown_costs(choices.methods)
    if unknown:
        lines.append(f"The reducers of {', '.join(unknown)} are counted as a gather only.")
    return lines


def plan_record(advice: Advice, command: str | None) -> dict[str, Any]:
    """All of it as plain JSON types; the command is what builds the best, where there is one."""
    subject, goal, choices = advice.basis.subject, advice.basis.goal, advice.basis.choices
    shares, fitted, best = advice.basis.speed.shares, advice.basis.calibration, advice.best
    return {
        "model": subject.name,
        "device": goal.device.name,
        "goal": {"ttft_ms": goal.ttft_ms, "tpot_ms": goal.tpot_ms},
        "request": {
            "text_tokens": choices.text_tokens,
            "answer_tokens": choices.answer_tokens,
            "images": 1,
            "tiles": subject.geometry.layouts[0].tiles,
        },
        "roofline_shares": dict(shares.by_kind),
        "shares_source": shares.source,
        "calibration": None if fitted is None else fit_record(fitted),
        "options": [row_record(subject, row) for row in advice.rows],
        "recommended": None if best is None else row_record(subject, best),
        "command": command,
        "notes": plan_notes(choices),
    }


def fit_record(fitted: Calibration) -> dict[str, Any]:
    """A calibration as plain JSON types."""
    fit = fitted.fit
    return {
        "source": fitted.source,
        "stages": fitted.stages,
        "error": fit.error,
        "worst": fit.worst,
        "worst_stage": fit.worst_stage,
        "call_ms": fit.shares.call_ms,
        "flops_per_s": fit.rates.flops_per_s,
        "bytes_per_s": fit.rates.bytes_per_s,
    }


def recommendation_line(advice: Advice) -> str:
    """One line on the best, which there must be."""
    assert advice.best is not None, "where nothing fits, why_none says so"
    chosen = advice.best.candidate
    name = "the unreduced model" if chosen.ratio == 1 else chosen.method
    equals = sum(each.fits and each.candidate.ratio == chosen.ratio for each in advice.verdicts)
    quickest = f", the quickest of {equals} at it" if equals > 1 else ""
    return (
        f"{name} at ratio {chosen.ratio:g}, {chosen.precision}: the largest ratio that"
        f" fits{quickest}; accuracy is not estimated, lvlm-export eval measures it"
    )


def why_none(advice: Advice) -> str:
    """One line: what came nearest and what would help."""
    closest, free = nearest_verdict(advice.verdicts), free_bytes(advice.basis.goal.device)
    assert closest is not None, "the unreduced model is always judged"
    chosen = closest.candidate
    hint = "try a smaller --ratio, a smaller model or another --device"
    if free is not None and closest.need.weights > free:
        hint = (
            f"the weights alone take {closest.need.weights / 1e9:.2f} GB: take a smaller model or"
            " another --device"
        )
    return (
        f"none of {len(advice.rows)} combinations fits; the nearest is {chosen.method} at ratio"
        f" {chosen.ratio:g}, {chosen.precision}: {'; '.join(closest.reasons)}; {hint}"
    )


def arrows(counts: list[int]) -> str:
    """``729 → 361``."""
    return " → ".join(map(str, counts))


def milliseconds(value: float) -> str:
    """With as many digits as an estimate deserves."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"
