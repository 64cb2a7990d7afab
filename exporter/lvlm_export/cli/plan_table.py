"""What ``lvlm-export plan`` shows: the basis of the estimates, one table, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lvlm_export.advise.planning import (
    UNREDUCED,
    Choices,
    Refused,
    Row,
    decoder_tokens,
    row_record,
    unknown_costs,
    vision_tokens,
)
from lvlm_export.advise.subject import Subject
from lvlm_profiles.cost.memory import free_bytes
from lvlm_profiles.cost.request import weight_elements
from lvlm_profiles.devices.device import Device
from lvlm_profiles.planner.judge import Goal, Speed, Verdict, nearest_verdict

if TYPE_CHECKING:
    from rich.table import Table

    from lvlm_profiles.planner.calibration import Calibration

NUMBERS = ("ratio", "kept", "TTFT ms", "vision", "prefill", "TPOT ms", "memory")


def basis_lines(
    subject: Subject, goal: Goal, choices: Choices, speed: Speed, fitted: Calibration | None
) -> Iterator[str]:
    """Lines on what the estimates stand on."""
    device, layout = goal.device, subject.geometry.layouts[0]
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
        yield f"speed   ESTIMATED from shapes and the device profile; {speed.shares.source}"
        return
    fit = fitted.fit
    yield (
        f"speed   ESTIMATED, fitted to {fitted.stages} stages of {fitted.source}: error"
        f" {100 * fit.error:.1f} %, worst {100 * fit.worst:+.1f} % at {fit.worst_stage};"
        f" {fit.shares.call_ms:.2f} ms of every graph call are fixed"
    )


def table(subject: Subject, rows: tuple[Row, ...]) -> Table:
    """One row per combination."""
    from lvlm_export.cli.console import new_table

    columns = ("method", "precision", *NUMBERS[:2], "vision, per tile", "decoder, per image")
    made = new_table(*columns, *NUMBERS[2:], "verdict", right=NUMBERS)
    for row in rows:
        if isinstance(row, Refused):
            blanks = [""] * (len(columns) - 3 + len(NUMBERS[2:]))
            made.add_row(row.method, row.precision, f"{row.ratio:g}", *blanks, row.reason)
            continue
        candidate, times = row.candidate, row.estimate
        figures = ["?"] * 4
        if times is not None:
            parts = (times.ttft_ms, times.phase_ms("vision"), times.phase_ms("prefill"))
            figures = [milliseconds(value) for value in (*parts, times.tpot_ms)]
        made.add_row(
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
    return made


def notes(choices: Choices) -> list[str]:
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


def plan_record(
    subject: Subject,
    goal: Goal,
    choices: Choices,
    speed: Speed,
    fitted: Calibration | None,
    rows: tuple[Row, ...],
    found: Verdict | None,
    command: str | None,
) -> dict[str, Any]:
    """All of it as plain JSON types."""
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
        "roofline_shares": dict(speed.shares.by_kind),
        "shares_source": speed.shares.source,
        "calibration": None if fitted is None else fit_record(fitted),
        "options": [row_record(subject, row) for row in rows],
        "recommended": None if found is None else row_record(subject, found),
        "command": command,
        "notes": notes(choices),
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


def recommendation_line(found: Verdict, verdicts: list[Verdict]) -> str:
    """One line on the best."""
    chosen = found.candidate
    name = "the unreduced model" if chosen.ratio == 1 else chosen.method
    equals = sum(each.fits and each.candidate.ratio == chosen.ratio for each in verdicts)
    quickest = f", the quickest of {equals} at it" if equals > 1 else ""
    return (
        f"{name} at ratio {chosen.ratio:g}, {chosen.precision}: the largest ratio that"
        f" fits{quickest}; accuracy is not estimated, lvlm-export eval measures it"
    )


def why_none(rows: tuple[Row, ...], verdicts: list[Verdict], device: Device) -> str:
    """One line: what came nearest and what would help."""
    closest, free = nearest_verdict(verdicts), free_bytes(device)
    assert closest is not None, "the unreduced model is always judged"
    chosen = closest.candidate
    hint = "try a smaller --ratio, a smaller model or another --device"
    if free is not None and closest.need.weights > free:
        hint = (
            f"the weights alone take {closest.need.weights / 1e9:.2f} GB: take a smaller model or"
            " another --device"
        )
    return (
        f"none of {len(rows)} combinations fits; the nearest is {chosen.method} at ratio"
        f" {chosen.ratio:g}, {chosen.precision}: {'; '.join(closest.reasons)}; {hint}"
    )


def arrows(counts: list[int]) -> str:
    """``729 → 361``."""
    return " → ".join(map(str, counts))


def milliseconds(value: float) -> str:
    """With as many digits as an estimate deserves."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"
