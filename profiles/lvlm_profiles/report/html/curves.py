"""Geometry of a report's curves: speed-up over ratio, accuracy over latency, latency over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lvlm_profiles.report import Report
from lvlm_profiles.report.figures import Sweep
from lvlm_profiles.report.html.bars import Tick, axis_ticks, plain_number
from lvlm_profiles.statistics import percentile

# Pixels of the plot, and percent of the width that its points stay away from the sides.
HEIGHT, TOP, BOTTOM = 240, 14, 26
LEFT, RIGHT = 8.0, 96.0


@dataclass(frozen=True)
class ChartPoint:
    """A point with its range from low to high."""

    x: float
    y: float
    low: float
    high: float
    text: str
    hint: str


@dataclass(frozen=True)
class Line:
    """A piece of a curve."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Mark:
    """A vertical line that says something."""

    x: float
    text: str
    colour: str


@dataclass(frozen=True)
class Curve:
    """A plot of points, with a line through them or beside them."""

    title: str
    x_title: str
    points: tuple[ChartPoint, ...]
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Scale:
    """Numbers to places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Percent of the width."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return LEFT + share * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def axes(self, y_unit: str = "") -> tuple[tuple[Tick, ...], tuple[Tick, ...]]:
        """Ticks of both."""
        return (
            tuple(Tick(self.x(v), plain_number(v)) for v in axis_ticks(self.x_low, self.x_high, 5)),
            tuple(
                Tick(self.y(v), f"{plain_number(v)}{y_unit}")
                for v in axis_ticks(self.y_low, self.y_high, 5)
            ),
        )

    def through(self, points: Sequence[tuple[float, float]]) -> tuple[Line, ...]:
        """A line from point to point."""
        at = [(self.x(x), self.y(y)) for x, y in points]
        return tuple(Line(x1, y1, x2, y2) for (x1, y1), (x2, y2) in pairwise(at))


def speedup_curve(report: Report) -> Curve | None:
    """Measured speed-up of the first token against the reference, and what FLOPs predict.

    The range of a point is the reference's median over the budget's 10th and 90th percentile.
    None for a single budget.
    """
    reference = report.budget(report.reference)
    if reference is None or len(report.budgets) < 2:
        return None
    whole = reference.ttft_ms.summary.median
    found = []
    for budget in report.budgets:
        ordered = sorted(budget.ttft_ms.samples)
        low, high = (whole / percentile(ordered, each) for each in (90, 10))
        found.append((budget, whole / budget.ttft_ms.summary.median, low, high))
    predicted = sorted(
        (each.achieved, each.predicted.speedup) for each in report.budgets if each.predicted
    )
    highest = max([high for *_, high in found] + [value for _, value in predicted])
    scale = Scale(0.0, 1.0, 0.0, highest * 1.08)
    points = tuple(
        ChartPoint(
            scale.x(budget.achieved),
            scale.y(value),
            scale.y(low),
            scale.y(high),
            f"{value:.2f}x",
            f"ratio {budget.ratio:g}: {value:.2f}x (10th to 90th percentile {low:.2f}x to"
            f" {high:.2f}x)",
        )
        for budget, value, low, high in found
    )
    title, x_title = "Speed-up of the first token", "share of visual tokens kept"
    x_ticks, y_ticks = scale.axes("x")
    lines = scale.through(predicted)
    return Curve(title, x_title, points, lines, x_ticks, y_ticks, HEIGHT)


def trade_off_curve(report: Report) -> Curve | None:
    """Accuracy with its 95 % interval over the median time to first token; None without both."""
    known = [(each, each.accuracy) for each in report.budgets if each.accuracy is not None]
    if not known:
        return None
    lows = [100 * row.low for _, row in known]
    highs = [100 * row.high for _, row in known]
    room = max(max(highs) - min(lows), 1.0) * 0.1
    slowest = max(each.ttft_ms.summary.median for each, _ in known)
    low, high = max(0.0, min(lows) - room), min(100.0, max(highs) + room)
    scale = Scale(0.0, slowest * 1.08, low, high)
    points = tuple(
        ChartPoint(
            scale.x(each.ttft_ms.summary.median),
            scale.y(100 * row.accuracy),
            scale.y(100 * row.low),
            scale.y(100 * row.high),
            f"{each.ratio:g}",
            f"ratio {each.ratio:g}: {100 * row.accuracy:.1f} % of {row.questions} questions in"
            f" {each.ttft_ms.summary.median:.1f} ms",
        )
        for each, row in known
    )
    x_ticks, y_ticks = scale.axes(" %")
    title, x_title = "Accuracy over time to first token", "ms to the first token (median)"
    return Curve(title, x_title, points, (), x_ticks, y_ticks, HEIGHT)


def sweep_curve(found: Sweep) -> Curve:
    """Latency of a subgraph over its token count, its knee and its jumps marked."""
    pairs = [(float(each.tokens), each.least_ms) for each in found.points]
    scale = Scale(0.0, pairs[-1][0], 0.0, 1.1 * max(each.least_ms for each in found.points))
    points = tuple(
        ChartPoint(
            scale.x(each.tokens),
            scale.y(each.least_ms),
            scale.y(each.least_ms),
            scale.y(each.least_ms),
            "",
            f"{each.tokens} tokens: {each.least_ms:.2f} ms (median {each.median_ms:.2f} ms)",
        )
        for each in found.points
    )
    marks = [Mark(scale.x(place), f"jump at {place}", "head") for place in found.steps]
    if found.knee is not None:
        marks.append(Mark(scale.x(found.knee), f"knee at {found.knee}", "reduce"))
    x_ticks, y_ticks = scale.axes(" ms")
    lines = scale.through(pairs)
    return Curve(found.stage, "tokens", points, lines, x_ticks, y_ticks, HEIGHT, tuple(marks))
