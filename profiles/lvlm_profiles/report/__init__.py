"""``report.json``: what a profile measured, with every raw sample. The schema, version 1.

Times are milliseconds, sizes bytes, energies joules, shares lie in [0, 1]. A value that was not
measured is null, and ``not_measured`` says why. Tokens are counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_profiles.records import RecordError, read
from lvlm_profiles.report.figures import BudgetFigures, Sweep
from lvlm_profiles.report.subject import Machine, Model, Protocol, Request, Startup

SCHEMA = 1
KIND = "lvlm-export profile"


class ReportError(ValueError):
    """A report that cannot be read; the message is one line."""


@dataclass(frozen=True)
class Caution:
    """Something that makes the numbers less sure; ``code`` is for programs."""

    code: str
    message: str


@dataclass(frozen=True)
class Report:
    """A whole profile. ``reference`` is the ratio that speed-ups are counted from."""

    kind: str
    schema: int
    created: str
    tool: str
    model: Model
    machine: Machine
    request: Request
    protocol: Protocol
    startup: Startup
    reference: float
    budgets: tuple[BudgetFigures, ...]
    sweeps: tuple[Sweep, ...]
    warnings: tuple[Caution, ...]
    not_measured: dict[str, str]

    def budget(self, ratio: float) -> BudgetFigures | None:
        """The budget of a ratio, or None."""
        return next((each for each in self.budgets if abs(each.ratio - ratio) < 1e-9), None)


def to_json(report: Report) -> str:
    """The report as text, small numbers rounded to a tenth of a microsecond."""
    return json.dumps(_rounded(dataclasses.asdict(report)), indent=1, ensure_ascii=False) + "\n"


def from_json(content: Any, where: str) -> Report:
    """A report from parsed JSON.

    Raises:
        ReportError: Not a report, of another schema, or with an entry that does not fit.
    """
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ReportError(f"{where} is no report of `lvlm-export profile`")
    if content.get("schema") != SCHEMA:
        raise ReportError(
            f"{where} has schema {content.get('schema')!r} and this version reads {SCHEMA}; type"
            " `lvlm-export profile` again"
        )
    try:
        return read(Report, content)
    except RecordError as error:
        raise ReportError(f"{where} is damaged: {error}") from None


def load_report(path: Path) -> Report:
    """Read a report file, or ``report.json`` in a directory; ReportError as in ``from_json``."""
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"there is no report {file}; `lvlm-export profile -o` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} is no JSON file ({error})") from None
    return from_json(content, str(file))


def write_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(to_json(report), encoding="utf-8")
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if abs(value) >= 1 else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
