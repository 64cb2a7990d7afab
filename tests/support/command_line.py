"""Typing ``lvlm-export`` commands in tests, and what every error must look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from lvlm_export import demo
from lvlm_export.cli import cli

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
