"""Signals at any moment, and streams that are closed, broken or full: one line, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import process

INTERRUPTED = "interrupted; type the same command to continue\n"
SIGNALS = {
    signal.SIGINT: (130, INTERRUPTED),
    signal.SIGTERM: (143, "ended by SIGTERM; type the same command to continue\n"),
    signal.SIGHUP: (
        129,
        "ended by SIGHUP, the terminal was closed; type the same command to continue\n",
    ),
}
# Sends itself a signal when a module is looked for, which is while that module loads.
WHILE_LOADING = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
sys.argv = ["lvlm-export", *{words!r}]
from lvlm_export.__main__ import main
main()
"""
# Sends itself a signal where a command is at work, here while it reads the question from stdin.
AT_WORK = """
import os, signal, sys, time
class Stdin:
    buffer = property(lambda self: self)
    def isatty(self):
        return False
    def read(self):
        {work}
        time.sleep(20)
sys.stdin = Stdin()
sys.argv = ["lvlm-export", "run", "nowhere"]
from lvlm_export.__main__ import main
main()
"""


# A shell lets jobs in the background, the tests may be one, ignore Ctrl-C.
AS_IN_FRONT = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_IN_FRONT + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("lvlm_export.cli", ["list", "targets"]),
        ("click", ["list", "targets"]),
        ("lvlm_export.cli.commands.list", ["list", "targets"]),
        ("rich.console", ["list", "targets"]),
        ("torch", ["list", "families"]),
        ("numpy", ["run", "nowhere", "question"]),
    ],
)
def test_ctrl_c_while_modules_load(module: str, words: list[str]) -> None:
    done = python(WHILE_LOADING.format(module=module, words=words, number=signal.SIGINT.value))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", INTERRUPTED)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_work(number: signal.Signals) -> None:
    done = python(AT_WORK.format(work=f"os.kill(os.getpid(), {number.value})"))
    assert (done.returncode, done.stdout, done.stderr) == (
        SIGNALS[number][0],
        "",
        SIGNALS[number][1],
    )


@pytest.mark.parametrize(
    "work",
    [
        # Python prints what a destructor raises and goes on.
        "exec('class Gone:\\n def __del__(self):\\n  os.kill(os.getpid(), 2)\\n  len(str())\\nGone()')",
        # A library that catches everything, and the user who presses again.
        "exec('try:\\n os.kill(os.getpid(), 2)\\n time.sleep(9)\\nexcept BaseException:\\n pass\\n"
        "os.kill(os.getpid(), 2)')",
        # A library that turns it into an error of its own.
        "exec('try:\\n os.kill(os.getpid(), 2)\\n time.sleep(9)\\nexcept BaseException:\\n"
        " raise RuntimeError')",
    ],
    ids=["destructor", "caught", "another error"],
)
def test_ctrl_c_that_a_library_swallows(work: str) -> None:
    done = python(AT_WORK.format(work=work))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", INTERRUPTED)


def test_what_is_ignored_stays_ignored() -> None:
    """As ``nohup`` and shells do for jobs in the background."""
    code = AT_WORK.format(work="os.kill(os.getpid(), 2); return b''")
    done = python("signal.signal(signal.SIGINT, signal.SIG_IGN)" + code)
    assert done.returncode == 2
    assert "the question is empty" in done.stderr


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A command line of bash with pipes and redirections; ``$@`` is the program."""
    program = [sys.executable, "-m", "lvlm_export"]
    return subprocess.run(
        ["bash", "-c", line, "bash", *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "status", "stderr"),
    [
        ('"$@" list targets | head -0; exit ${PIPESTATUS[0]}', 1, ""),
        ('"$@" list targets >&-', 0, ""),
        ('"$@" list targets >&- 2>&- <&-', 0, ""),
        ('"$@" list nonsense 2>&-', 2, ""),
        ('"$@" list nonsense 2>/dev/full', 2, ""),
        ('"$@" list targets >/dev/full', 1, "error: stdout: the disk is full; "),
        ('"$@" list targets --json >/dev/full', 1, "error: stdout: the disk is full; "),
        ('"$@" --help >/dev/full', 1, "error: stdout: the disk is full; "),
        ('"$@" run nowhere <&-', 2, "error: the question is empty"),
    ],
)
def test_streams_that_take_nothing(line: str, status: int, stderr: str) -> None:
    done = shell(line)
    assert done.returncode == status
    assert done.stderr.startswith(stderr)
    assert len(done.stderr.splitlines()) == bool(stderr)


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints to a closed stdout would land in that file."""
    code = (
        "import os, sys\n"
        "from lvlm_export.__main__ import open_closed_streams\n"
        "open_closed_streams()\n"
        f"file = os.open({str(tmp_path / 'weights')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "os.write(1, b'from a library'); print('from Python', flush=True)\n"
        "sys.exit(file < 3)\n"
    )
    line = f'{sys.executable} -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line, code], check=False).returncode == 0
    assert os.stat(tmp_path / "weights").st_size == 0  # noqa: PTH116


def test_the_script_begins_where_signals_are_taken_over() -> None:
    import tomllib

    from house import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"lvlm-export": "lvlm_export.__main__:main"}


def test_brackets_are_text_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    result = process("list", "targets", "--json")
    assert result.returncode == 0
    from lvlm_export.cli.console import new_table, show_table

    table = new_table("name")
    table.add_row("lvlm-export[cpu] [/x] :smile:")
    import click
    from click.testing import CliRunner

    @click.command()
    def show() -> None:
        show_table(table)

    assert "lvlm-export[cpu] [/x] :smile:" in CliRunner().invoke(show).stdout


def test_a_line_holds_nothing_that_moves_the_cursor() -> None:
    from lvlm_export.cli import explain
    from lvlm_runtime.errors import LvlmError

    assert explain(LvlmError("no \x1b[2J\x07\n bundle\u202e")) == (
        r"error: no \x1b[2J\x07 bundle\u202e",
        1,
    )
