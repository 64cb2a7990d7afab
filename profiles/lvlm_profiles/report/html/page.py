"""``report.html``: one file without scripts or requests, light and dark, made to be printed too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lvlm_profiles.report import Report
from lvlm_profiles.report.html import bars
from lvlm_profiles.report.html.curves import speedup_curve, sweep_curve, trade_off_curve
from lvlm_profiles.report.html.facts import headline_tiles, report_facts, stage_rows
from lvlm_profiles.report.terminal import visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def to_html(report: Report) -> str:
    """The whole page."""
    page = (
        open_templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            reference=report.budget(report.reference),
            tiles=headline_tiles(report),
            facts=report_facts(report),
            stage_rows=stage_rows(report),
            first=bars.stage_bars(report, decode=False),
            further=bars.stage_bars(report, decode=True),
            strips=bars.sample_strips(report),
            speedups=speedup_curve(report),
            trade_off=trade_off_curve(report),
            memory=bars.memory_bars(report),
            sweeps=[sweep_curve(each) for each in report.sweeps],
            geometry={"label": bars.LABEL, "bar": bars.BAR},
        )
    )
    return visible(page)


def open_templates() -> Environment:
    """The templates of all pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
