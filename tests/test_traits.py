"""The trait table against transformers itself; ``tests/support/traits`` says how to add a row."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from command_line import error_line, typed
from helpers import made_once
from traits import BASES, Trait, rows

ROWS = rows()
# What the table is to hold at least.
LEAST = 60


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=[pytest.mark.slow] if row.slow else [])
        for name, row in ROWS.items()
    ],
)
def test_a_trait(row: Trait, shared: Path, tmp_path: Path) -> None:
    row.check(written(row, shared, tmp_path))


def written(row: Trait, shared: Path, place: Path) -> Path:
    """A checkpoint with a row's trait."""
    base = shared / f"traits_{row.base}"
    with made_once(base) as part:
        if part is not None:
            BASES[row.base](part)
    directory = Path(shutil.copytree(base, place / "model"))
    row.write(directory)
    return directory


@pytest.mark.parametrize("name", ["rows_beyond_vocabulary", "adapter_alone", "no_crop"])
def test_plan_checks_what_build_checks(name: str, shared: Path, tmp_path: Path) -> None:
    directory = written(ROWS[name], shared, tmp_path)
    line = error_line(typed("plan", "--model", directory, "--device", "orin_nano_8gb"), 1)
    words = ("--ratio", "0.5", "--model", directory, "-o", tmp_path / "bundle")
    assert line == error_line(typed("build", *words), 1)


def test_the_table_says_what_each_row_is() -> None:
    assert len(ROWS) >= LEAST
    assert [name for name, row in ROWS.items() if not row.write.__doc__] == []
