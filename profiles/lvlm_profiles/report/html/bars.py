"""Geometry of a report's bars and strips: plain numbers that the templates draw.

Horizontal places are percent of the chart's width and vertical ones pixels, so that a chart fills
a page of any width and its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lvlm_profiles.report import Report
from lvlm_profiles.report.figures import BudgetFigures, StageTime
from lvlm_profiles.statistics import percentile

# Group of stages -> its title; also the name of its colour in the style sheet.
GROUPS = {
    "prepare": "prepare picture and prompt",
    "vision": "vision encoder and projector",
    "reduce": "token reduction",
    "assemble": "pack, embed, assemble",
    "decoder": "language model",
    "head": "LM head",
    "host": "sampling and host",
}
MEMORY_PARTS = {
    "host": ("process_bytes", "before loading: interpreter and libraries"),
    "vision": ("weights_bytes", "weights and graphs"),
    "decoder": ("kv_cache_bytes", "key-value cache"),
    "reduce": ("activations_bytes", "activations and arenas"),
}
# Percent of the width below which a piece has no text, and the room right of the longest bar.
TEXT_FITS, ROOM = 9.0, 1.06
# Height of a row: its label, its bar, the gap to the next.
LABEL, BAR, GAP = 20, 22, 18


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class BarPiece:
    """A part of a bar."""

    colour: str
    x: float
    width: float
    text: str
    hint: str


@dataclass(frozen=True)
class Bar:
    """A row of a chart: a label, the bar's pieces and their sum in words."""

    label: str
    total: str
    y: int
    pieces: tuple[BarPiece, ...]


@dataclass(frozen=True)
class Dot:
    """One sample."""

    x: float
    y: float
    hint: str


@dataclass(frozen=True)
class Strip:
    """Samples of one budget: dots under a box from quartile to quartile with the median."""

    label: str
    total: str
    y: int
    dots: tuple[Dot, ...]
    low: float
    quartile: float
    middle: float
    upper: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Rows over one axis."""

    title: str
    rows: tuple[Bar, ...] | tuple[Strip, ...]
    ticks: tuple[Tick, ...]
    height: int
    legend: tuple[tuple[str, str], ...] = ()


def axis_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) from low to high."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plain_number(value: float) -> str:
    """``1250``, ``12.5``, ``0.33``: as few digits as say it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def label_of(budget: BudgetFigures) -> str:
    """``ratio 0.33 · 65 visual tokens``."""
    tokens = f" · {budget.visual_tokens[-1].tokens} visual tokens" if budget.visual_tokens else ""
    return f"ratio {budget.ratio:g}{tokens}"


def group_of(stage: StageTime) -> str:
    """The group a stage is drawn in."""
    name = stage.name
    if name in ("tokenize", "preprocess"):
        return "prepare"
    if "@" in name:
        return "reduce"
    if name in ("packer", "assemble", "embedding"):
        return "assemble"
    if name == "lm_head":
        return "head"
    return next((group for group in ("vision", "decoder") if name.startswith(group)), "host")


def stage_bars(report: Report, decode: bool) -> Chart:
    """Mean milliseconds per stage, stacked, one bar per budget; means add up to the mean whole."""
    rows = []
    for budget in report.budgets:
        stages = [stage for stage in budget.stages if (stage.phase == "decode") == decode]
        sums = dict.fromkeys(GROUPS, 0.0)
        for stage in stages:
            sums[group_of(stage)] += stage.summary.mean
        if stages:
            rows.append((label_of(budget), sums))
    used = tuple(each for each in GROUPS.items() if any(sums[each[0]] > 0 for _, sums in rows))
    title = "Time per further token" if decode else "Time to first token"
    return _stack(title, rows, dict(used), lambda value: f"{plain_number(value)} ms", 1.0)


def memory_bars(report: Report) -> Chart | None:
    """Peak memory and what it is made of, one bar per budget; None where it was not measured."""
    rows = [
        (
            label_of(budget),
            {key: getattr(budget.memory, name) for key, (name, _) in MEMORY_PARTS.items()},
        )
        for budget in report.budgets
        if budget.memory is not None
    ]
    if not rows:
        return None
    titles = {key: title for key, (_, title) in MEMORY_PARTS.items()}
    return _stack("Peak memory", rows, titles, lambda value: f"{plain_number(value)} MB", 1e6)


def _stack(
    title: str,
    rows: Sequence[tuple[str, dict[str, float]]],
    titles: dict[str, str],
    say: Callable[[float], str],
    unit: float,
) -> Chart:
    """Stacked bars; a piece below zero (memory that was not there) is not drawn."""
    totals = [sum(sums.values()) / unit for _, sums in rows]
    longest = max(totals, default=1.0) * ROOM or 1.0
    bars = []
    for place, ((label, sums), total) in enumerate(zip(rows, totals, strict=True)):
        x, pieces = 0.0, []
        for key, name in titles.items():
            value = max(sums[key], 0.0) / unit
            width = 100 * value / longest
            text = plain_number(value) if width >= TEXT_FITS else ""
            if value > 0:
                pieces.append(BarPiece(key, x, width, text, f"{name}: {say(value)}"))
            x += width
        bars.append(Bar(label, say(total), _y(place), tuple(pieces)))
    return Chart(title, tuple(bars), _axis(longest), _height(rows), tuple(titles.items()))


def sample_strips(report: Report) -> Chart:
    """Every sample of the time to first token."""
    highest = max(budget.ttft_ms.summary.maximum for budget in report.budgets) * ROOM
    rows = []
    for place, budget in enumerate(report.budgets):
        samples = budget.ttft_ms.samples
        ordered = sorted(samples)
        at = [100 * percentile(ordered, each) / highest for each in (0, 25, 50, 75, 100)]
        dots = tuple(
            # Three lanes tell samples of the same time apart.
            Dot(
                100 * value / highest, 6.0 + 5 * (number % 3), f"round {number + 1}: {value:.1f} ms"
            )
            for number, value in enumerate(samples)
        )
        found = budget.ttft_ms.summary
        name, last = ("largest", found.maximum) if found.p99 is None else ("p99", found.p99)
        total = f"median {plain_number(found.median)} ms, {name} {plain_number(last)} ms"
        rows.append(Strip(label_of(budget), total, _y(place), dots, *at))
    return Chart("Every round", tuple(rows), _axis(highest), _height(rows))


def _axis(highest: float) -> tuple[Tick, ...]:
    places = [each for each in axis_ticks(0, highest) if each <= highest]
    return tuple(Tick(100 * each / highest, plain_number(each)) for each in places)


def _y(place: int) -> int:
    return place * (LABEL + BAR + GAP)


def _height(rows: Sequence[object]) -> int:
    return len(rows) * (LABEL + BAR + GAP)
