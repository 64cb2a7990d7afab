"""Parts of the pages that the command line and its tables say: commands, families, methods, support."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
from transformers.utils.logging import disable_progress_bar

from families import CASES
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.cli import COMMANDS, cli
from lvlm_export.cli.commands import list as listing
from lvlm_export.families import FAMILIES, ModelShape
from lvlm_export.plan.fit import check_fit, geometry_of
from lvlm_export.reduction import METHODS, load_method
from lvlm_runtime.errors import UsageError
from measured_parts import BENCHMARKS


def commands() -> str:
    """Every command with its options."""
    lines = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help is not None
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        words = " ".join(
            f"[{(p.name or '').upper()}]"
            if not p.required
            else (p.metavar or (p.name or "").upper())
            for p in arguments
        )
        summary = " ".join(command.help.split("\n\n")[0].split())
        options = [opt for p in command.params if isinstance(p, click.Option) for opt in flags(p)]
        typed = f"lvlm-export {name} {words}".strip()
        lines.append(f"- `{typed}`: {summary}")
        lines.append(f"  Options: {', '.join(f'`{option}`' for option in options)}.")
    return "\n".join(lines)


def flags(option: click.Option) -> list[str]:
    """An option's long names."""
    return [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]


def methods() -> str:
    """The table of ``lvlm-export list methods``, with measured costs."""
    cost = json.loads((BENCHMARKS / "reducer_cost.json").read_text(encoding="utf-8"))
    share = {name: f"{entry['share']:.2%}" for name, entry in cost["methods"].items()}
    rows = [
        f"| `{name}` | {row['summary']} | {row['acts in']} | {row['composes']} | {row['fits']} |"
        f" {share.get(name, '-')} | {row['source']} |"
        for name, row in listing.methods().items()
    ]
    before, after = cost["tokens"]
    return "\n".join(
        [
            "| method | what it does | acts in | composes | fits | cost | source |",
            "|---|---|---|---|---|---:|---|",
            *rows,
            "",
            f"Cost: all reducers of a request on LLaVA-1.5-7B's widths at {before} → {after} tokens, as a"
            " share of an estimated first token on the same CPU"
            " (`python benchmarks/reducer_cost.py`).",
        ]
    )


def families() -> str:
    """The table of ``lvlm-export list families``."""
    rows = [f"| `{name}` | {row['summary']} |" for name, row in listing.families().items()]
    return "\n".join(["| `model_type` | what |", "|---|---|", *rows])


def targets() -> str:
    """The table of ``lvlm-export list targets``: targets of a build, then devices."""
    rows = [
        f"| `{name}` | {row['precision']} | {row['dialect']} | {row['summary']} |"
        for name, row in listing.targets().items()
    ]
    return "\n".join(["| target | precision | dialect | what |", "|---|---|---|---|", *rows])


def refusal(name: str, shape: ModelShape) -> str:
    """Why ``build`` does not take a method for a model; empty where it does."""
    try:
        check_fit(load_method(name), geometry_of(shape), shape.vision.prefix, shape.packed)
    except UsageError as error:
        # What stands between the method's name and what to do about it.
        return str(error).removeprefix(f"method {name} ").partition(";")[0]
    return ""


def fits() -> str:
    """Which method fits which family and why not, as ``build`` decides it on a small checkpoint of each."""
    disable_progress_bar()  # of weights that are written
    columns: dict[str, tuple[str, ...]] = {}
    with tempfile.TemporaryDirectory() as name:
        for case in CASES:
            checkpoint = Checkpoint.open(case.write(Path(name)))
            shape = checkpoint.shape(case.options.get("image_size"))
            column = f"`{checkpoint.config.model_type}`{', CLS' * bool(shape.vision.prefix)}"
            if column not in columns and shape.projector is None:
                columns[column] = tuple(refusal(each, shape) for each in METHODS)
    missing = [each for each in FAMILIES if not any(f"`{each}`" in column for column in columns)]
    if missing:
        raise ValueError(f"tests/support/families.py has no case of {', '.join(missing)}")
    order = sorted(columns, key=lambda each: each.replace("`", ""))
    rows = [
        f"| `{method}` | {' | '.join('-' if columns[each][index] else 'yes' for each in order)} |"
        for index, method in enumerate(METHODS)
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for index, method in enumerate(METHODS):
        for each in order:
            if columns[each][index]:
                reasons.setdefault((method, columns[each][index]), []).append(each)
    why = [f"- `{name}` {why}: {'; '.join(which)}." for (name, why), which in reasons.items()]
    head = [f"| method | {' | '.join(order)} |", f"|---|{':---:|' * len(order)}"]
    return "\n".join([*head, *rows, "", *why])
