"""What every benchmark here prints and keeps: the machine, the versions, a table, a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lvlm_profiles.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
WORK = ROOT / "build" / "bench"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers", "numpy", "onnx")


def environment() -> dict[str, Any]:
    """Machine, load, versions and time of a measurement."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column left, numbers right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_environment(where: dict[str, Any]) -> None:
    """One line on where the numbers come from."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    print(
        f"{where['date']}  {where['processor']}, {where['cores']} cores,"
        f" load {where['load_average'][0]:g}  ({versions})"
    )


def save(name: str, content: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_whole(path, json.dumps(content, indent=1) + "\n")
    return path
