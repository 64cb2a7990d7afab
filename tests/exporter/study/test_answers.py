"""A file of answers is continued by the same run, and no other file is changed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kills import KILLED, Process
from lvlm_export.cli.commands.eval import ask
from lvlm_export.study import answers
from lvlm_export.study.answers import Answer, AnswerFile
from lvlm_export.study.evaluation import Question
from lvlm_runtime.errors import LvlmError

RUN = {"content_key": "abc", "max_new_tokens": 16}
HEADER = json.dumps(RUN) + "\n"


def answer(number: int, text: str = "red") -> Answer:
    return Answer(f"q.jsonl:{number}", 1.0, "colour", "?", "red", text, True)


def question(number: int, expected: str = "red") -> Question:
    return Question(f"q.jsonl:{number}", Path("a.png"), f"Question {number}?", expected, "c", False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def read(path: Path) -> list[Answer]:
    with AnswerFile(path, RUN) as file:
        return file.answers


class Recorded:
    """A session that always answers red and keeps the questions."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, float]] = []

    def generate(self, prompt: str, images: Any, ratio: float, **_: Any) -> Any:
        self.requests.append((prompt, ratio))
        return SimpleNamespace(text="red")


def test_a_run_goes_on_where_it_stopped(path: Path) -> None:
    questions = [question(1), question(2, "blue")]
    session: Any = Recorded()
    with AnswerFile(path, RUN) as file:
        ask(session, questions[:1], [1.0, 0.5], 16, file)
    with path.open("a") as stream:
        stream.write('{"key": "q.json')  # the process died here
    with AnswerFile(path, RUN) as file:
        answers = ask(session, questions, [1.0, 0.5], 16, file)
    assert session.requests == [
        ("Question 1?", 1.0),
        ("Question 1?", 0.5),
        ("Question 2?", 1.0),
        ("Question 2?", 0.5),
    ]
    assert [each.right for each in answers] == [True, True, False, False]
    assert len(read(path)) == 4


def test_any_text_is_read_back(path: Path) -> None:
    """Also the characters at which Python ends lines and JSON does not."""
    texts = ["a\u2028b", "a\x85b", "a\nb", "\u00fc", "\x0b\x0c", ""]
    with AnswerFile(path, RUN) as file:
        for number, text in enumerate(texts):
            file.append(answer(number, text))
    assert [each.answer for each in read(path)] == texts


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"hello\n",
        b"{",
        b"[]\n",
        b"{}\n",
        b'{"key": "value"}\n{"key',
        b"\n\n",
        b"\x00\xff\xfe",
        b"[" * 100_000,
        HEADER.encode()[:-5],
        b"x" * 200_000 + b"\n",
    ],
)
def test_a_file_of_somebody_else_is_named_and_not_changed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = rf"^{path} is no file of answers; name another --output$"
    with pytest.raises(LvlmError, match=message):
        AnswerFile(path, RUN)
    assert path.read_bytes() == content


def test_answers_of_another_run_are_named_and_not_changed(path: Path) -> None:
    with AnswerFile(path, RUN) as file:
        file.append(answer(1))
    with path.open("ab") as stream:
        stream.write(b"{cut")
    before = path.read_bytes()
    with pytest.raises(LvlmError, match="holds answers of another bundle or other options; name"):
        AnswerFile(path, {**RUN, "content_key": "other"})
    assert path.read_bytes() == before


def test_a_file_that_another_run_made_meanwhile_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run made the file and ended between the look for it and the opening."""
    is_special = answers.is_special

    def meanwhile(of: Path) -> bool:
        path.write_text(json.dumps({**RUN, "content_key": "other"}) + "\n")
        return is_special(of)

    with monkeypatch.context() as patched:
        patched.setattr(answers, "is_special", meanwhile)
        with pytest.raises(LvlmError, match="holds answers of another bundle"):
            AnswerFile(path, RUN)
    assert path.exists()


def test_a_line_that_is_no_json_is_named(path: Path) -> None:
    path.write_text(HEADER + "{\n")
    with pytest.raises(LvlmError, match=r"answers\.jsonl:2 is no JSON; delete the line, or name"):
        AnswerFile(path, RUN)
    assert path.read_text() == HEADER + "{\n"


def test_an_empty_file_is_begun(path: Path) -> None:
    """A disk that was full when it was made may have left it."""
    path.touch()
    assert read(path) == []
    assert path.read_text() == HEADER


def test_the_line_of_the_run_may_lack_its_end(path: Path) -> None:
    path.write_text(HEADER.rstrip())
    with AnswerFile(path, RUN) as file:
        file.append(answer(1))
    assert read(path) == [answer(1)]


def test_a_second_run_is_refused_while_the_first_writes(path: Path) -> None:
    refused = pytest.raises(
        LvlmError, match=f"^another run is writing {path}; wait for it, or name"
    )
    with AnswerFile(path, RUN), refused:
        AnswerFile(path, RUN)
    read(path)


def test_a_link_is_written_through(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path.name)
    with AnswerFile(link, RUN) as file:
        file.append(answer(1))
    assert link.is_symlink()
    assert read(path) == [answer(1)]


def test_a_directory_and_a_missing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        AnswerFile(tmp_path, RUN)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as missing:
        AnswerFile(tmp_path / "absent" / "answers", RUN)
    assert missing.value.filename == str(tmp_path / "absent" / "answers")


def test_a_file_that_is_marked_read_only_stays(path: Path) -> None:
    """For root, too, who could write it."""
    path.touch()
    path.chmod(0o444)
    with pytest.raises(PermissionError) as caught:
        AnswerFile(path, RUN)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b""


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    with AnswerFile(pipe, RUN) as file:
        assert file.answers == []
        file.append(answer(1))
    reader.join(10)
    assert found[0].startswith(HEADER)
    assert found[0].count("\n") == 2


def test_the_names_of_open_files_are_written_to(tmp_path: Path) -> None:
    """Also where a shell has led them to a file that is there: it is appended to and not replaced."""
    log = tmp_path / "log"
    log.write_text("mine\n")
    code = (
        "import pathlib; from lvlm_export.study.answers import AnswerFile;"
        f" AnswerFile(pathlib.Path('/dev/stdout'), {RUN})"
    )
    with log.open("a") as stream:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True, env=environment)
    assert log.read_text() == "mine\n" + HEADER


def test_a_device_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        AnswerFile(Path("/dev/full"), RUN)
    assert caught.value.filename == "/dev/full"


def limited(size: int, work: Callable[[], None]) -> None:
    """Run where the kernel lets no file grow over a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    def begin() -> None:
        AnswerFile(path, RUN)

    limited(10, begin)
    assert not path.exists()
    with AnswerFile(path, RUN) as file:
        file.append(answer(1))
        size = path.stat().st_size
        limited(size + 10, lambda: file.append(answer(2)))
        assert path.stat().st_size == size
        file.append(answer(3))
    assert read(path) == [answer(1), answer(3)]


def test_a_kill_leaves_what_the_same_run_goes_on_with(path: Path, tmp_path: Path) -> None:
    def run() -> None:
        with AnswerFile(path, RUN) as file:
            for number in range(len(file.answers), 3):
                file.append(answer(number))

    for at in range(1, 100):
        path.unlink(missing_ok=True)
        status = Process(run, tmp_path / "messages", at).wait()
        if status == 0:
            break
        assert status == KILLED
        run()
        assert read(path) == [answer(number) for number in range(3)]
    assert at >= 3
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
