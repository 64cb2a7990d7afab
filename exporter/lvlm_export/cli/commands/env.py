"""``lvlm-export env``: what an issue report needs of this installation and machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from typing import Any

import click

from lvlm_export import __version__
from lvlm_export.cli.console import say
from lvlm_export.cli.options import json_option

NAME = "lvlm-export"
# Extras for those who change this code; no command needs them.
FOR_DEVELOPERS = ("dev", "test")
# What runs graphs: in a checkout that is not installed, too.
ENGINES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-bindings",
)


@click.command(short_help="Print what an issue report needs.")
@json_option
def env(as_json: bool) -> None:
    """Print versions, machine, what can run graphs, and which extras are installed, for an issue report.

    Nothing is sent anywhere, and no name of a user, host or directory is in it.
    """
    found = environment()
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(found)
        return
    for label, text in lines(found).items():
        say(f"{label:<13}{text}")


def environment() -> dict[str, Any]:
    """Everything, as plain JSON types."""
    from lvlm_export.cli.commands.list import backends
    from lvlm_profiles.devices import machine

    memory = machine.memory_info().get("MemTotal")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": machine.system(),
        "architecture": platform.machine(),
        "processor": machine.processor(),
        "cores": machine.cores(),
        "memory_bytes": memory,
        "board": machine.board(),
        "power_mode": machine.power_mode(),
        "gpu": gpu(),
        "backends": {name: row["here"] for name, row in backends().items()},
        "providers": providers(),
        "packages": packages(),
        "extras": extras(),
    }


def gpu() -> str | None:
    """The first GPU by name; None where none answers, and then the backends say why."""
    from lvlm_runtime.errors import LvlmError
    from lvlm_runtime.tensorrt.cuda import open_driver

    try:
        return str(open_driver().name)
    except LvlmError:
        return None


def providers() -> list[str]:
    """What ONNX Runtime can run graphs on; empty where it is not installed."""
    from lvlm_runtime.errors import LvlmError

    try:
        from lvlm_runtime.backends.onnxruntime import available_providers
    except LvlmError:
        return []
    return available_providers()


def requirements() -> dict[str, list[str]]:
    """Packages of this distribution, by extra (``""`` for none).

    Empty where it runs from a checkout that is not installed.
    """
    found: dict[str, list[str]] = {}
    try:
        required = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for line in required:
        package = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        assert package is not None, line
        if package[0] != NAME:
            found.setdefault(extra[1] if extra else "", []).append(package[0])
    return found


def packages() -> dict[str, str]:
    """Installed packages of all extras but those for developers, with their versions."""
    listed = requirements()
    used = [
        name for extra, names in listed.items() if extra not in FOR_DEVELOPERS for name in names
    ]
    versions = {name: installed(name) for name in dict.fromkeys((*used, *ENGINES))}
    return {name: version for name, version in versions.items() if version is not None}


def extras() -> dict[str, list[str]]:
    """By extra: its packages that are not installed."""
    missing = {}
    for extra, listed in requirements().items():
        if extra and extra not in FOR_DEVELOPERS:
            missing[extra] = [name for name in dict.fromkeys(listed) if installed(name) is None]
    return missing


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines(found: dict[str, Any]) -> dict[str, str]:
    """For people: one line each."""
    from lvlm_export.cli.console import size

    memory = found["memory_bytes"]
    machine = [found["processor"], f"{found['cores']} cores", found["architecture"]]
    machine += [f"{size(memory)} of memory"] if memory else []
    machine += [each for each in (found["board"], found["power_mode"]) if each]
    whole = [name for name, missing in found["extras"].items() if not missing]
    partly = [f"{name} ({', '.join(each)})" for name, each in found["extras"].items() if each]
    return {
        NAME: f"{found['version']}, {found['implementation']} {found['python']}",
        "system": found["system"],
        "machine": ", ".join(machine),
        "gpu": found["gpu"] or "none answers",
        "backends": "; ".join(f"{name}: {state}" for name, state in found["backends"].items()),
        "providers": ", ".join(found["providers"]) or "none",
        "extras": ", ".join(whole) or "none",
        "missing": ", ".join(partly) or "nothing",
        "packages": ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
    }
