"""``report.html``: one file without scripts or requests, light and dark, made to be printed too."""

from __future__ import annotations

from pathlib import Path

from lvlm_profiles.report import Report
from lvlm_runtime import charts
from lvlm_runtime.chart_curves import speedups, sweep_curve, trade_off
from lvlm_runtime.report_facts import facts, headline_tiles, stage_rows

TEMPLATES = Path(__file__).with_name("templates")


def to_html(report: Report) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        reference=report.budget(report.reference),
        tiles=headline_tiles(report),
        facts=facts(report),
        stage_rows=stage_rows(report),
        first=charts.stage_bars(report, decode=False),
        further=charts.stage_bars(report, decode=True),
        strips=charts.strips(report),
        speedups=speedups(report),
        trade_off=trade_off(report),
        memory=charts.memory_bars(report),
        sweeps=[sweep_curve(each) for each in report.sweeps],
        geometry={"label": charts.LABEL, "bar": charts.BAR},
    )
