"""``lvlm-export chat``: piped line by line, and what a terminal does beside."""

from __future__ import annotations

import builtins
import signal
from pathlib import Path
from typing import Any

import pytest

from command_line import PICTURE, QUESTION, error_line, typed
from lvlm_export.cli.commands import chat as command
from lvlm_export.cli.commands.chat import Talk, answers_stopped_by_ctrl_c, lines
from lvlm_runtime import Session

CPU = ("--device", "cpu", "--threads", "1")


def test_every_line_is_a_turn_and_words_with_a_slash_are_not(demo_bundle: Path) -> None:
    typed_lines = [QUESTION, "", "/stats", "Is there a red circle?", "/stats", "/reset", "/stats"]
    result = typed("chat", demo_bundle, "--image", PICTURE, *CPU, stdin="\n".join(typed_lines))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["yellow", "yes"]
    first, second, third = result.stderr.splitlines()
    assert first.startswith("0 of 113 tokens of the prompt were not computed again; first token ")
    assert second.startswith("113 of 126 tokens of the prompt were not computed again; first token")
    assert second.endswith("pictures that follow keep 0.33")
    assert third == "nothing was asked yet"


def test_a_line_that_fails_is_one_line_and_the_conversation_goes_on(demo_bundle: Path) -> None:
    typed_lines = [
        *("/image nowhere.png", "/ratio 0.4", "/ratio half", "/sing", "/ratio 1.0"),
        *(f"/image '{PICTURE}'", QUESTION, "/quit", "never asked"),
    ]
    result = typed("chat", demo_bundle, *CPU, stdin="\n".join(typed_lines))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["yellow"]
    *failed, last = result.stderr.splitlines()
    assert last == "error: 4 of the lines on stdin failed; see above"
    parts = ("no picture file at 'nowhere.png'", "0.4", "'half' is not a ratio", "no command /sing")
    for line, part in zip(failed, parts, strict=True):
        assert line.startswith("error: ")
        assert part in line


def test_wrong_options_and_bytes_are_one_line(demo_bundle: Path) -> None:
    line = error_line(typed("chat", demo_bundle, "--context", "1", *CPU), 2)
    assert "a context of 1 is not between 2 and" in line
    line = error_line(typed("chat", demo_bundle, "--prefill-chunk", "0", *CPU), 2)
    assert "a prefill chunk of 0 rows is below 1" in line
    line = error_line(typed("chat", demo_bundle, *CPU, stdin=b"\xff\n"), 2)
    assert "a line on stdin is not UTF-8 text" in line


def test_what_does_not_fit_keeps_its_picture_for_the_next_try(demo_bundle: Path) -> None:
    typed_lines = ["/ratio 1.0", f"/image {PICTURE}", QUESTION, "/ratio 0.33", QUESTION]
    options = ("--context", "150", "--max-new-tokens", "4")
    result = typed("chat", demo_bundle, *options, *CPU, stdin="\n".join(typed_lines))
    assert result.stdout.splitlines() == ["yellow"]
    assert "does not fit" in result.stderr.splitlines()[0]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(demo_bundle, "onnxruntime", "cpu", 1)
    talk = Talk(session.chat(), 0.5, 8, [PICTURE])
    extend = session.chain.extend

    def interrupted(*_: Any, **__: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    with answers_stopped_by_ctrl_c(True):
        session.chain.extend = interrupted
        assert talk.take(QUESTION)
        session.chain.extend = extend
        assert talk.waiting == [PICTURE]
        assert talk.take(QUESTION)
    assert capsys.readouterr().out.splitlines()[-1] == "yellow"
    assert len(talk.conversation.messages) == 2


def test_a_terminal_is_asked_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[Any] = ["one", KeyboardInterrupt, "two", EOFError]

    def type_next(mark: str) -> str:
        assert mark == command.MARK
        word = script.pop(0)
        if isinstance(word, str):
            return word
        raise word

    monkeypatch.setattr(builtins, "input", type_next)
    assert list(lines(True)) == ["one", "two"]
