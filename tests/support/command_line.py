"""Typing ``lvlm-export`` commands in tests, and what every error must look like."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner, Result

from lvlm_export import demo
from lvlm_export.cli import COMMANDS, cli
from lvlm_runtime.errors import UsageError

PICTURE = demo.PICTURES / "scene_0.png"
QUESTION = "What color is the circle?"


def typed(*words: str | Path, stdin: str | bytes | None = None) -> Result:
    """Run a command line in this process; nothing is a terminal."""
    return CliRunner().invoke(cli, [str(word) for word in words], input=stdin)


def process(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "lvlm_export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def error_line(result: Result | subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a failed command: right status, no traceback, nothing on stdout."""
    returned = result.exit_code if isinstance(result, Result) else result.returncode
    assert returned == status, result.stderr
    assert result.stdout == ""
    # Lines of progress may stand before it; what went wrong is one line, and the last.
    lines = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    assert [line.startswith("error: ") for line in lines].count(True) == 1, result.stderr
    assert lines[-1].startswith("error: "), result.stderr
    return lines[-1]


def wrong(words: list[str], whole: bool) -> str | None:
    """Why a command would be refused before it begins; of a part, why its options are unknown."""
    name = words[0]
    if name.startswith("-") or not name.islower():  # --version, COMMAND
        return None
    if name not in COMMANDS:
        return f"there is no command {name}"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    if not whole:
        known = {opt for each in command.params for opt in (*each.opts, *each.secondary_opts)}
        typed = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        unknown = sorted(typed - known - {"--help"})
        return f"there is no option {', '.join(unknown)}" if unknown else None
    try:
        command.make_context(name, [word.rstrip("…") for word in words[1:]])
    except click.exceptions.Exit:
        return None
    except (click.ClickException, UsageError) as error:
        said = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return None if "there is no such recipe file" in said else said
    return None
