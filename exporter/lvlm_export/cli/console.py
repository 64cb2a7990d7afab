"""What a user sees of long work: bars on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.table import Column, Table

    from lvlm_runtime.progress import Advance, Progress

# Wide enough that a table in a file or pipe is never cut.
FILE_WIDTH = 200
# Columns of a terminal to which a text in a table may be folded before columns have to leave.
FOLDED = 24


def open_progress() -> Progress:
    """Bars where stderr is a terminal, otherwise lines."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class BarProgress:
    """One rich bar per stage, with the step it has just finished."""

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Advance]:
        """A bar of ``steps`` steps."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        from lvlm_profiles.report.terminal import visible

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=steps, step="")

            def advance(step: str) -> None:
                bars.update(task, advance=1, step=visible(step))

            yield advance
            bars.update(task, step="")


class LineProgress:
    """One line per stage and one per step."""

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Advance]:
        """Lines ``title: 3 of 17, step``."""
        done = 0

        def advance(step: str) -> None:
            nonlocal done
            done += 1
            say(f"{title}: {done} of {steps}, {step}", err=True)

        yield advance


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text to stdout or stderr; control characters of names and answers are written out.

    Everything that the command line prints goes through here, through tables or through JSON.
    """
    from lvlm_profiles.report.terminal import visible

    click.echo(visible(text), err=err, nl=nl)


def show_table(table: Table, leave: Sequence[str] = ()) -> None:
    """Print a table to stdout, at full width where that is no terminal.

    Where a terminal is too narrow, columns leave until the rest fits, and a line on stderr names them;
    no cell is ever cut. ``--wide`` keeps all.

    Args:
        table: Of ``new_table``.
        leave: Columns that may leave, the first to go first; before them go those without content.
    """
    from rich.console import Console

    from lvlm_export.cli.options import WIDE

    context = click.get_current_context(silent=True)
    terminal = sys.stdout.isatty()
    width = Console().width if terminal else FILE_WIDTH
    gone: list[str] = []
    if terminal and not (context is not None and context.meta.get(WIDE)):
        table, gone = narrow_table(table, leave, width)
        width = max(width, table_width(table, FOLDED))
    else:
        width = max(width, table_width(table, None))
    set_widths(table, width)
    # A name in brackets or between colons is a name, neither a style nor a picture.
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)
    if gone:
        say(f"note    not shown at {width} columns: {'; '.join(gone)}; --wide shows all", err=True)


def narrow_table(table: Table, leave: Sequence[str], width: int) -> tuple[Table, list[str]]:
    """The table without the columns that have to leave at a width, and their names."""
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    names = [str(column.header) for column in table.columns]
    empty = [
        index
        for index in range(len(names))
        if rows and all(row[index] in ("", "-") for row in rows)
    ]
    order = empty + [names.index(name) for name in leave if names.index(name) not in empty]
    kept = list(range(len(names)))
    right = tuple(str(column.header) for column in table.columns if column.justify == "right")

    def made() -> Table:
        result = new_table(*(names[index] for index in kept), right=right)
        for row in rows:
            result.add_row(*(row[index] for index in kept))
        return result

    result = made()
    for index in order:
        if table_width(result, FOLDED) <= width:
            break
        kept.remove(index)
        result = made()
    gone = [name for index, name in enumerate(names) if index not in kept and name]
    return result, gone


def table_width(table: Table, folded: int | None) -> int:
    """Columns of a terminal that a table needs without cutting a cell.

    Args:
        table: Of ``new_table``.
        folded: Width to which texts may be folded between words; None for not at all.
    """
    total = 3 * len(table.columns) - 1  # a blank at each end, and three from column to column
    for column in table.columns:
        word, whole = cell_widths(column)
        total += whole if folded is None else max(word, min(whole, folded))
    return total


def cell_widths(column: Column) -> tuple[int, int]:
    """Widths of a column's longest word and of its longest cell; a figure is one word."""
    from rich.cells import cell_len

    texts = [str(column.header), *map(str, column.cells)]
    whole = max(map(cell_len, texts))
    if column.justify == "right":
        return whole, whole
    return max((cell_len(word) for text in texts for word in text.split()), default=0), whole


def set_widths(table: Table, width: int) -> None:
    """Share a width out among a table's columns, so that rich, which would cut words, has no choice."""
    widths = {id(column): cell_widths(column) for column in table.columns}
    room = width - table_width(table, 0)
    wanting = sorted(table.columns, key=lambda each: widths[id(each)][1] - widths[id(each)][0])
    for number, column in enumerate(wanting):
        word, whole = widths[id(column)]
        given = max(0, min(whole - word, room // (len(wanting) - number)))
        column.width = word + given
        room -= given


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table in the one style of this program; ``right`` names the columns of numbers."""
    from rich import box
    from rich.table import Table

    from lvlm_profiles.report.terminal import visible

    class VisibleTable(Table):
        """Its cells are texts of others."""

        def add_row(self, *cells: Any, **options: Any) -> None:
            shown = (visible(cell) if isinstance(cell, str) else cell for cell in cells)
            super().add_row(*shown, **options)

    table = VisibleTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column in right
        # A figure is not broken over lines, and nothing that is too long is cut.
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(column, justify=justify, no_wrap=number, overflow="fold")
    return table


def echo_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    import json

    from lvlm_profiles.report.terminal import visible_json

    click.echo(visible_json(json.dumps(value, indent=1, ensure_ascii=False)))


def quiet_libraries() -> None:
    """Keep the bars and advice of torch and transformers off the user's screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.environ.get("LVLM_EXPORT_DEBUG"):
        warnings.simplefilter("ignore")


def size(size_bytes: int) -> str:
    """A size for people: ``12.9 MB`` (powers of ten, as disks are sold)."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
