"""``report.json``: what a profile measured, with every raw sample. The schema, version 1.

Times are milliseconds, sizes bytes, energies joules, shares lie in [0, 1]. A value that was not
measured is null, and ``not_measured`` says why. Tokens are counts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_profiles.errors import LvlmError
from lvlm_profiles.files import write_whole
from lvlm_profiles.records import read, read_json
from lvlm_profiles.report.figures import BudgetFigures, Sweep
from lvlm_profiles.report.subject import Machine, Model, Protocol, Request, Startup
from lvlm_profiles.report.terminal import visible_json

SCHEMA = 1
KIND = "lvlm-export profile"
REMEDY = "write it again with `lvlm-export profile -o`"


@dataclass(frozen=True)
class Caution:
    """Something that makes the numbers less sure; ``code`` is for programs."""

    code: str
    message: str


# Fields that hold what was measured, a number a round.
_SAMPLES = ("samples", "samples_ms", "stopwatch_ms", "reported_ms")


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
    text = json.dumps(_rounded(dataclasses.asdict(report)), indent=1, ensure_ascii=False)
    return visible_json(text) + "\n"


def from_json(content: Any, where: str | Path, remedy: str = REMEDY) -> Report:
    """A report from parsed JSON.

    Args:
        content: What ``json.loads`` gave.
        where: The file that it is from.
        remedy: What to do about a wrong one.

    Raises:
        LvlmError: Not a report, of another schema, or with an entry that does not fit.
    """
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise LvlmError(f"{where} is no report of `{KIND}`; {remedy}")
    if content.get("schema") != SCHEMA:
        raise LvlmError(
            f"{where} has schema {content.get('schema')!r} and this version reads {SCHEMA};"
            f" {remedy}"
        )
    report = read(Report, content, where, remedy)
    if empty := next(_without_samples(report, ""), None):
        raise LvlmError(f"{where}, {empty}: expected one number or more, got none; {remedy}")
    return report


def _without_samples(value: Any, place: str) -> Iterator[str]:
    """Places of figures without a sample; whatever reads a report takes their medians."""
    if isinstance(value, tuple):
        for number, each in enumerate(value):
            yield from _without_samples(each, f"{place}[{number}]")
    elif dataclasses.is_dataclass(value):
        for name in (field.name for field in dataclasses.fields(value)):
            part = getattr(value, name)
            inner = f"{place}.{name}".removeprefix(".")
            if part == () and name in _SAMPLES:
                yield inner
            yield from _without_samples(part, inner)


def load_report(path: Path, remedy: str = REMEDY) -> Report:
    """Read a report file, or ``report.json`` in a directory.

    Raises:
        LvlmError: There is none, or as of ``from_json``.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        content = read_json(file, remedy)
    except FileNotFoundError:
        raise LvlmError(f"there is no report {file}; `lvlm-export profile -o` writes one") from None
    return from_json(content, file, remedy)


def write_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    write_whole(path, to_json(report))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if abs(value) >= 1 else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
