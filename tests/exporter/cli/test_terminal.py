"""What fits a narrow terminal, what was probably meant, and what --help groups."""

from __future__ import annotations

import io
import re
import shlex

import pytest
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from command_line import error_line, typed, wrong
from lvlm_export.cli import COMMANDS
from lvlm_export.cli.console import (
    FOLDED,
    narrow_table,
    new_table,
    set_widths,
    show_table,
    table_width,
)
from lvlm_export.cli.guide import EXAMPLES, GROUPS

LEAVE = ("detail", "second")
ARROWS = "729 → 629 → 579 → 529 → 479 → 429"


def measured() -> Table:
    """A table as plan's: a name, figures, long texts."""
    table = new_table(
        *("method", "ratio", "detail", "second", "first token", "empty"),
        right=("ratio", "second", "first token"),
    )
    table.add_row("prumerge_plus", "0.333333", ARROWS, "1234567.8", "120.1 ms", "-")
    table.add_row("local", "1", "729", "9.1", "68.1 ms", "-")
    return table


def printed(table: Table, width: int) -> list[str]:
    """Lines of a table on a terminal of so many columns."""
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (200, []),
        (80, ["empty"]),
        (70, ["empty", "detail"]),
        (45, ["empty", "detail", "second"]),
        (20, ["empty", "detail", "second"]),
    ],
)
def test_columns_leave_by_priority_and_no_cell_is_cut(width: int, gone: list[str]) -> None:
    table, left = narrow_table(measured(), LEAVE, width)
    assert sorted(left) == sorted(gone)
    needed = table_width(table, FOLDED)
    assert needed <= width or gone[1:] == list(LEAVE)
    set_widths(table, max(width, needed))
    lines = printed(table, max(width, needed))
    assert max(map(len, lines)) <= max(width, needed)
    text = "\n".join(lines)
    assert "…" not in text
    for column in table.columns:
        for cell in map(str, column.cells):
            # Figures stand on one line, texts may be folded between their words.
            for part in [cell] if column.justify == "right" else cell.split():
                assert re.search(rf"(?<!\S){re.escape(part)}(?!\S)", text), part


def test_the_width_is_that_of_the_printed_table() -> None:
    table, console = measured(), Console(width=500)
    found = Measurement.get(console, console.options, table)
    assert found.maximum == table_width(table, None)
    set_widths(table, 500)
    assert Measurement.get(console, console.options, table).maximum == found.maximum


def test_a_terminal_shows_what_fits_and_wide_shows_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    show_table(measured(), LEAVE)
    assert "detail" in capsys.readouterr().out  # no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_table(measured(), LEAVE)
    out, err = capsys.readouterr()
    assert "detail" not in out
    assert "0.333333" in out
    assert err == "note    not shown at 60 columns: detail; empty; --wide shows all\n"


def test_wide_is_an_option_of_what_prints_tables() -> None:
    text = typed("list", "methods", "--wide").stdout
    assert "arXiv:2412.06263" in text
    for name in ("plan", "build", "profile", "inspect", "eval", "compare", "tune", "engines"):
        assert "--wide" in typed(name, "--help").stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("biuld",), "unknown command 'biuld'; did you mean 'build'? known: plan, "),
        (("build", "--method", "visonzip"), "method 'visonzip'; did you mean 'visionzip'? known: "),
        (("build", "--target", "orin_nano"), "'orin_nano'; did you mean 'orin_nano_8gb'? known: "),
        (("plan", "--device", "orin-nano-8gb"), "did you mean 'orin_nano_8gb'? known: "),
        (("check", "x", "--target", "trt10.3"), "target 'trt10.3'; did you mean 'trt-10.3'? known"),
        (("run", "x", "--backend", "onnx"), "backend 'onnx'; did you mean 'onnxruntime'? known: "),
        (("build", "--method", "magic"), "unknown method 'magic'; known: "),
    ],
)
def test_what_was_probably_meant(words: tuple[str, ...], meant: str) -> None:
    assert meant in error_line(typed(*words), 2)


def test_every_command_has_one_group_and_an_example_that_is_parsed() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, example in EXAMPLES.items():
        words = shlex.split(example)
        assert words[:2] == ["lvlm-export", name]
        assert wrong(words[1:], True) is None
        assert example in typed(name, "--help").stdout


def test_help_groups_commands() -> None:
    lines = typed("--help").stdout.splitlines()
    titles = [
        line[:-1] for line in lines if line.endswith(":") and not line.startswith((" ", "Usage"))
    ]
    assert titles == ["Options", *GROUPS]


def test_a_command_of_ones_own_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "mine", "lvlm_export.cli.commands.env:env")
    text = typed("--help").stdout
    assert text.index("Others:") < text.index("  mine ")
