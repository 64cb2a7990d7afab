"""What the command line prints of others: names, answers, reports and errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from command_line import error_line, typed
from lvlm_export.cli.commands.run import AnswerStream
from lvlm_export.cli.console import LineProgress, echo_json, new_table, say, show_table
from lvlm_profiles.report import to_json
from lvlm_profiles.report.html.page import to_html
from lvlm_profiles.report.markdown import to_markdown
from lvlm_profiles.report.terminal import visible
from reports import full_report

HOSTILE = "\x1b[2J\x9b31m\u202e[/red] :smile: \x07"
SHOWN = r"\x1b[2J\x9b31m\u202e[/red] :smile: \x07"


def test_text_tables_and_progress_show_what_would_command_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True)
    AnswerStream().write(HOSTILE)
    table = new_table("name", "number", right=("number",))
    table.add_row(HOSTILE, "1")
    show_table(table)
    with LineProgress().stage("reading", 1) as advance:
        advance(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 3
    assert err.count(SHOWN) == 2
    assert visible(out + err) == out + err


def test_json_keeps_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"answer": HOSTILE})
    out = capsys.readouterr().out
    assert json.loads(out) == {"answer": HOSTILE}
    assert visible(out) == out


def test_errors_show_what_would_command_a_terminal(tmp_path: Path) -> None:
    for words in (("run", tmp_path / HOSTILE, "?"), ("inspect", tmp_path / HOSTILE)):
        line = error_line(typed(*words), 1)
        assert r"\x1b[2J\x9b31m\u202e" in line
        assert visible(line) == line
    line = error_line(typed("run", tmp_path, f"--{HOSTILE}"), 2)
    assert visible(line) == line


def test_reports_show_what_would_command_a_terminal() -> None:
    report = full_report()
    model = dataclasses.replace(report.model, name=f"{HOSTILE}<script>")
    report = dataclasses.replace(report, model=model)
    for text in (to_json(report), to_markdown(report), to_html(report)):
        assert visible(text) == text
    assert json.loads(to_json(report))["model"]["name"] == f"{HOSTILE}<script>"
    assert f"{SHOWN}&lt;script&gt;" in to_html(report)
