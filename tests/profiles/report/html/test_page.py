"""``report.html`` and ``report.md``: what is on the page, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lvlm_profiles.report import Report
from lvlm_profiles.report.html import bars
from lvlm_profiles.report.html.curves import (
    LEFT,
    RIGHT,
    speedup_curve,
    sweep_curve,
    trade_off_curve,
)
from lvlm_profiles.report.html.page import to_html
from lvlm_profiles.report.markdown import to_markdown
from reports import MODEL, full_report, make_report

VOID = {"meta", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """Counts what is there and checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def charts(self) -> list[str | None]:
        return [attrs["data-chart"] for _, attrs in self.found if "data-chart" in attrs]


def test_a_full_report_has_every_chart_and_every_element_is_closed() -> None:
    page = Page(to_html(full_report()))
    assert page.open == []
    assert page.charts() == [
        "first-token",
        "distribution",
        "speed-up",
        "trade-off",
        "further-token",
        "memory",
        "sweep",
        "sweep",
    ]
    text = " ".join(page.text)
    for part in ("knee at 96", "jump at 128", "RAPL package-0", "91.0 %", "2.50", "ratio 0.33"):
        assert part in text
    assert "load average was 3.10 on 2 cores <before> the run" in text, "escaped, not markup"


def test_what_was_not_measured_is_said_and_not_drawn() -> None:
    budgets = tuple(
        replace(each, memory=None, predicted=None, tpot_ms=None, tokens_per_s=None)
        for each in make_report().budgets
    )
    page = Page(to_html(make_report(budgets=budgets)))
    assert page.charts() == ["first-token", "distribution", "speed-up", "further-token"]
    assert "Energy: no meter." in " ".join(page.text)


def test_a_single_budget_has_no_speed_up_to_draw() -> None:
    page = Page(to_html(make_report({0.33: (100.0, 101.0)})))
    assert "speed-up" not in page.charts()


def test_nothing_is_loaded_from_anywhere() -> None:
    html = to_html(full_report())
    page = Page(html)
    for tag, attributes in page.found:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "xlink:href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", html)


def test_light_dark_and_paper_have_their_own_colours() -> None:
    html = to_html(make_report())
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    for name in bars.GROUPS:
        assert html.count(f"--{name}:") == 3


def test_a_model_with_markup_in_its_name_is_text() -> None:
    report = make_report(model=replace(MODEL, name="<script>alert(1)</script>"))
    assert "<script>" not in to_html(report)


@pytest.mark.parametrize("make", [make_report, full_report])
def test_bars_end_where_their_sum_does(make: object) -> None:
    report: Report = make()  # type: ignore[operator]
    chart = bars.stage_bars(report, decode=False)
    slow, fast = chart.rows
    assert isinstance(slow, bars.Bar)
    assert isinstance(fast, bars.Bar)
    ends = [bar.pieces[-1].x + bar.pieces[-1].width for bar in (slow, fast)]
    assert ends[0] == pytest.approx(100 / bars.ROOM)
    assert ends[1] == pytest.approx(ends[0] * 600 / 1201)
    hints = [piece.hint for piece in slow.pieces]
    assert hints[1] == "vision encoder and projector: 110 ms"
    for piece, following in zip(slow.pieces, slow.pieces[1:], strict=False):
        assert piece.x + piece.width == pytest.approx(following.x)


def test_stages_fall_into_groups() -> None:
    names = {
        "tokenize": "prepare",
        "vision.3": "vision",
        "vision@2": "reduce",
        "projected@0": "reduce",
        "packer": "assemble",
        "decoder.1": "decoder",
        "lm_head": "head",
        "sample": "host",
        "host": "host",
    }
    stage = make_report().budgets[0].stages[0]
    assert {name: bars.group_of(replace(stage, name=name)) for name in names} == names


def test_strips_hold_every_sample_inside_the_chart() -> None:
    for strip in bars.sample_strips(make_report()).rows:
        assert isinstance(strip, bars.Strip)
        assert len(strip.dots) == 6
        assert 0 < strip.low <= strip.quartile <= strip.middle <= strip.upper <= strip.high < 100


def test_speed_ups_measured_and_predicted() -> None:
    curve = speedup_curve(full_report())
    assert curve is not None
    assert [point.text for point in curve.points] == ["1.00x", "2.00x"]
    assert len(curve.lines) == 1, "from budget to budget, as FLOPs predict"
    for point in curve.points:
        assert LEFT <= point.x <= RIGHT
        assert point.high <= point.y <= point.low, "pixels count from the top"


def test_accuracy_over_latency() -> None:
    assert trade_off_curve(make_report()) is None
    curve = trade_off_curve(full_report())
    assert curve is not None
    assert curve.points[0].hint == "ratio 1: 91.0 % of 400 questions in 200.5 ms"


def test_a_sweep_marks_its_knee_and_its_jumps() -> None:
    marks = [mark.text for mark in sweep_curve(full_report().sweeps[0]).marks]
    assert marks == ["jump at 128", "knee at 96"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 7, [0, 2, 4, 6]),
        (0, 0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (83, 95, [84, 86, 88, 90, 92, 94]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert bars.axis_ticks(low, high) == pytest.approx(expected)


def test_large_numbers_are_written_out() -> None:
    slow = {1.0: (39252.5, 41000.0), 0.33: (21569.4, 22000.0)}
    text = " ".join(Page(to_html(make_report(slow))).text)
    assert "e+0" not in text
    assert "21,785" in text, "the median at the head of the page"


@pytest.mark.parametrize(
    ("value", "text"),
    [(39252.5, "39,252"), (100.4, "100"), (47.52, "47.5"), (0.305, "0.305"), (0.0, "0")],
)
def test_numbers_have_as_few_digits_as_say_it(value: float, text: str) -> None:
    assert bars.plain_number(value) == text


def test_markdown_has_the_table_the_stages_and_the_reasons() -> None:
    text = to_markdown(full_report())
    lines = text.splitlines()
    assert lines[0] == "# demo with illava on Some CPU"
    assert (
        "| 0.33 | 0.332 | 65 | 100.0 | 101.5 | 2.00x | 3.03x | 4.00 | 250.0 | 224.0 | 111.0 | 2.50"
        " | 91.0 % (87.8 to 93.4) |"
    ) in lines
    assert "| vision | vision.0 | 110.275 | 55.000 |" in lines
    assert "- vision.1: knee at 96 tokens, jumps at 128" in lines
    assert "energy: not measured, no meter." in to_markdown(make_report())
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") >= 5 for line in tables)
