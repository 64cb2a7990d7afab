"""``lvlm-export compare``: what changed from one profile to another, and whether it is noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import json_option, wide_option
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from lvlm_profiles.report import Report
    from lvlm_profiles.report.compare import Change, Limit


@click.command(short_help="What changed from one profile to another.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "limits",
    metavar="LIMIT",
    multiple=True,
    help="METRIC[@RATIO]:LIMIT, as ttft_ms:+5% or tokens_per_s@0.33:-3%; exit 1 where a change goes"
    " beyond it and is not noise. Repeatable.",
)
@click.option("--force", is_flag=True, help="Compare reports of other models or machines too.")
@click.option("--all", "everything", is_flag=True, help="Show stages that did not change too.")
@wide_option
@json_option
def compare(
    before: Path,
    after: Path,
    limits: tuple[str, ...],
    force: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """Compare two reports of `lvlm-export profile -o`, each a report.json or its directory.

    A change counts when its 95 % bootstrap interval leaves zero out and it is larger than 2 %.
    """
    from lvlm_profiles.report import compare as rule
    from lvlm_profiles.report import load_report

    wanted = [rule.parse_limit(text) for text in limits]
    one, other = load_report(before), load_report(after)
    reasons = rule.differences(one, other)
    if reasons and not force:
        raise LvlmError(
            f"the reports do not compare: they differ in {', '.join(reasons)}; --force compares"
            " them anyway"
        )
    changes = rule.compare_reports(one, other)
    if all(change.ratio is None for change in changes):
        raise LvlmError("the reports have no ratio in common")
    broken = rule.broken_limits(changes, wanted)
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(
            {
                "differences": reasons,
                "other_changes": rule.other_changes(one, other),
                "changes": [dataclasses.asdict(change) for change in changes],
                "broken": [limit.text for limit, _ in broken],
            }
        )
    else:
        show(one, other, changes, reasons, everything)
    if broken:
        raise LvlmError("; ".join(tell(limit, change) for limit, change in broken))


def tell(limit: Limit, change: Change) -> str:
    """A broken limit in words."""
    return f"{change.label} changed by {change.change:+.1%}, beyond --fail-if {limit.text}"


def show(
    before: Report,
    after: Report,
    changes: Sequence[Change],
    reasons: Sequence[str],
    everything: bool,
) -> None:
    """The table for people: all metrics, and the stages that changed."""
    from lvlm_export.cli.console import new_table, show_table
    from lvlm_profiles.report.compare import is_notable, other_changes

    names = ("metric", "ratio", "before", "after", "change", "95 % interval", "verdict")
    table = new_table(*names, right=names[1:6])
    hidden = 0
    for change in changes:
        if not everything and not is_notable(change, changes):
            hidden += 1
            continue
        interval = "-" if change.low is None else f"{change.low:+.1%} to {change.high:+.1%}"
        table.add_row(
            change.metric,
            "-" if change.ratio is None else f"{change.ratio:g}",
            number(change.before),
            number(change.after),
            f"{change.change:+.1%}",
            interval,
            change.verdict,
        )
    for each in reasons:
        say(f"compared by --force: they differ in {each}")
    for each in other_changes(before, after):
        say(f"changed: {each}")
    for name, report in (("before", before), ("after", after)):
        for caution in report.warnings:
            say(f"warning {name}: {caution.message}")
    show_table(table, ("95 % interval", "before"))
    rows = [each for each in (before.budgets, after.budgets) if each]
    counts = " and ".join(str(len(budgets[0].ttft_ms.samples)) for budgets in rows)
    say(
        f"medians of {counts} rounds; a change counts when its 95 % interval leaves zero out and it"
        " is larger than 2 %"
    )
    if hidden:
        say(
            f"{hidden} stages are within noise or changed by less than 1 % of the whole (--all"
            " shows them)"
        )


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
