"""What a user sees of long work: bars on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from lvlm_runtime.progress import Advance, Progress

# Wide enough that a table in a file or pipe is never cut.
FILE_WIDTH = 200


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


def show_table(table: Table) -> None:
    """Print a rich table to stdout, at full width where that is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else FILE_WIDTH
    # A name in brackets or between colons is a name, neither a style nor a picture.
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


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
        table.add_column(column, justify="right" if column in right else "left")
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
