"""``lvlm-export list``: what this installation supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lvlm_export.cli.options import json_option, wide_option

if TYPE_CHECKING:
    from lvlm_export.reduction.method import Method

KINDS = ("families", "methods", "backends", "targets")
# The role of a method in a composed one, ``build --method visionzip+fastv``.
PARTS = {"first": "NAME+…", "second": "…+NAME", None: "alone"}
# Columns that leave a narrow terminal, the first to go first.
LEAVE = ("module", "cost", "fits", "composes", "acts in")
Rows = dict[str, dict[str, str]]


@click.command("list", short_help="List families, methods, backends or targets.")
@click.argument("kind", type=click.Choice(KINDS))
@wide_option
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List the checkpoint families, reduction methods, backends or targets that are known."""
    from lvlm_export.cli.console import echo_json, new_table, show_table

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
    show_table(table, [name for name in LEAVE if name in columns])


def families() -> Rows:
    """By ``model_type``; this one imports torch."""
    from lvlm_export.families import FAMILIES, load_family

    return {name: {"summary": load_family(name).summary} for name in FAMILIES}


def methods() -> Rows:
    """Reduction methods: where they act, what they need, and where they were published."""
    from lvlm_export.reduction import METHODS, load_method
    from lvlm_export.reduction.compose import role_in_composed

    loaded = {name: load_method(name) for name in METHODS}
    return {
        name: {
            "summary": method.summary,
            "acts in": method.acts_in,
            "fits": fits(method),
            "composes": PARTS[role_in_composed(method)],
            "cost": method.cost,
            "source": method.paper,
        }
        for name, method in loaded.items()
    }


def fits(method: Method) -> str:
    """The models a method is built for; the others are refused."""
    if method.needs_cls:
        return "towers with a CLS token"
    if method.appends:
        return "pictures without a grid of tiles or places"
    if method.keeps_square:
        return "towers with a token for each patch"
    return "all families"


def backends() -> Rows:
    """What can run graphs, and what is missing for it on this machine."""
    import importlib.util

    from lvlm_runtime.backends import BACKENDS, LIBRARIES

    rows: Rows = {}
    for name, entry in BACKENDS.items():
        present = [each for each in LIBRARIES[name] if importlib.util.find_spec(each) is not None]
        rows[name] = {
            "library": f"{' and '.join(present)} installed" if present else "not installed",
            "here": missing(name, installed=bool(present)),
            "module": entry.split(":")[0],
        }
    return rows


def missing(backend: str, installed: bool) -> str:
    """Why a backend cannot run on this machine, or that it can."""
    from lvlm_runtime.backends import open_backend
    from lvlm_runtime.errors import LvlmError
    from lvlm_runtime.tensorrt.cuda import open_driver

    if installed and backend != "tensorrt":
        return "runs"
    try:
        if backend == "tensorrt":
            return f"runs on {open_driver().name}"
        open_backend(backend, "auto", None)  # says what to install
        return "runs"
    except LvlmError as error:
        return str(error)


def targets() -> Rows:
    """What a bundle can be built for, then the devices of ``engines --device``."""
    from lvlm_export.plan.targets import TARGETS
    from lvlm_profiles.devices.device import device_names, load_device

    rows = {
        name: {"precision": each.precision, "dialect": each.dialect, "summary": each.summary}
        for name, each in TARGETS.items()
    }
    for name in device_names():
        device = load_device(name)
        figures = ((device.memory_gb, "GB"), (device.bandwidth_gb_s, "GB/s"))
        known = [f"{figure.value:g} {unit}" for figure, unit in figures if figure.value is not None]
        parts = [device.title, device.target, device.compute_capability or "", *known]
        parts += [f"{release}: TensorRT {version}" for release, version in device.releases.items()]
        summary = ", ".join(part for part in parts if part)
        rows[name] = {
            "precision": device.defaults.precision,
            "dialect": TARGETS[device.target].dialect,
            "summary": summary,
        }
    return rows
