"""``lvlm-export list``: what this installation knows."""

from __future__ import annotations

import click

from lvlm_export.commands.options import json_option

KINDS = ("families", "methods", "backends", "targets")
Rows = dict[str, dict[str, str]]


@click.command("list", short_help="List families, methods, backends or targets.")
@click.argument("kind", type=click.Choice(KINDS))
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List the checkpoint families, reduction methods, backends or targets that are known."""
    from lvlm_export.console import echo_json, new_table, show_table

    rows = {"families": families, "methods": methods, "backends": backends, "targets": targets}[
        kind
    ]()
    if as_json:
        echo_json(rows)
        return
    columns = list(next(iter(rows.values())))
    table = new_table("name", *columns)
    for name, row in rows.items():
        table.add_row(name, *row.values())
    show_table(table)


def families() -> Rows:
    """By ``model_type``; this one imports torch."""
    from lvlm_export.families import FAMILIES, load_family

    return {name: {"summary": load_family(name).summary} for name in FAMILIES}


def methods() -> Rows:
    """Reduction methods and where they were published."""
    from lvlm_export.reduction import METHODS, load_method

    loaded = {name: load_method(name) for name in METHODS}
    return {
        name: {"summary": method.summary, "source": method.paper} for name, method in loaded.items()
    }


def backends() -> Rows:
    """What can run graphs; only whether its library is installed is looked at."""
    import importlib.util

    from lvlm_runtime.backends import BACKENDS

    rows: Rows = {}
    for name, entry in BACKENDS.items():
        found = importlib.util.find_spec(name) is not None
        rows[name] = {
            "library": "installed" if found else "not installed",
            "module": entry.split(":")[0],
        }
    return rows


def targets() -> Rows:
    """What a bundle can be built for."""
    from lvlm_export.targets import TARGETS

    return {
        name: {"precision": each.precision, "summary": each.summary}
        for name, each in TARGETS.items()
    }
