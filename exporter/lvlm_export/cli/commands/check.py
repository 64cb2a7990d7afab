"""``lvlm-export check``: would a TensorRT version take the graphs of a bundle?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument, json_option, wide_option
from lvlm_profiles.registry import unknown_name

if TYPE_CHECKING:
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.graphs.gate import Violation


class ParserTarget(click.ParamType):  # type: ignore[type-arg]
    """A key of the operator table, which is read only when the option is used."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check."""
        from lvlm_runtime.graphs.operators import PARSERS

        if value not in PARSERS:
            self.fail(unknown_name("target", str(value), PARSERS), param, ctx)
        return str(value)


@click.command(short_help="Check a bundle's operators against a TensorRT version.")
@bundle_argument
@click.option(
    "--target",
    type=ParserTarget(),
    required=True,
    help="trt-10.3 (JetPack 6), trt-10.13, trt-10.16, trt-11 or rtx.",
)
@wide_option
@json_option
def check(bundle: Path, target: str, as_json: bool) -> None:
    """Say whether every graph uses only what that version's ONNX parser takes.

    Names operator, node and the first version that has it. Needs neither a GPU nor TensorRT; the
    answer comes from a table whose sources are in lvlm_runtime/graphs/operators.py.
    """
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.errors import LvlmError
    from lvlm_runtime.graphs.gate import check_bundle, find_parser

    opened = Bundle.open(bundle)
    graphs = [name for name in opened.manifest.files if name.endswith(".onnx")]
    violations = check_bundle(opened, target)
    title = find_parser(target).title
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(record(target, len(graphs), violations))
    elif violations:
        show(violations)
    else:
        say(f"PASS  {title} takes all {len(graphs)} graphs")
    if violations:
        raise LvlmError(refusal(opened, target, violations))


def refusal(bundle: Bundle, target: str, violations: Sequence[Violation]) -> str:
    """One line: what is not taken, the first reason, and what to build instead."""
    from lvlm_runtime.graphs.gate import find_parser

    parser = find_parser(target)
    graphs = sum(name.endswith(".onnx") for name in bundle.manifest.files)
    refused = len({each.graph for each in violations})
    remedy = "rtx" if parser.rtx else "trt"
    return (
        f"{parser.title} does not take {refused} of {graphs} graphs of {bundle.directory} (built for"
        f" {bundle.manifest.target}); the first: {violations[0]}; build a bundle with --target"
        f" {remedy}"
    )


def record(target: str, graphs: int, violations: list[Violation]) -> dict[str, Any]:
    """The answer as plain JSON types."""
    import dataclasses

    return {
        "target": target,
        "passed": not violations,
        "graphs": graphs,
        "violations": [dataclasses.asdict(each) for each in violations],
    }


def show(violations: list[Violation]) -> None:
    """One row per finding."""
    from lvlm_export.cli.console import new_table, show_table

    table = new_table("graph", "node", "operator", "what is wrong", "first version that has it")
    for each in violations:
        table.add_row(each.graph, each.node, each.op, each.reason, each.first or "none")
    show_table(table, ("node",))
