"""docs/MEASURE.md: its command runs as it stands, and its lines of questions are read."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from lvlm_export.demo import PICTURES
from lvlm_export.reduction import METHODS
from lvlm_export.study.evaluation import read_questions

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "MEASURE.md").read_text(encoding="utf-8")
(COMMAND,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
LINES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def with_values(**values: str) -> str:
    """The command with other values for its names."""
    text = COMMAND
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
        assert count == 1, name
    return text


def write_questions(directory: Path) -> Path:
    """The page's own lines, about pictures that are there."""
    pictures = sorted(PICTURES.glob("*.png"))
    entries = [json.loads(line) for line in LINES]
    for entry, picture in zip(entries, pictures, strict=False):
        entry["image"] = picture.name
    file = directory / "questions.json"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return file


def test_the_lines_of_the_page_are_read(tmp_path: Path) -> None:
    pope, other = read_questions(write_questions(tmp_path), PICTURES)
    assert (pope.yes_no, pope.answer, pope.kind) == (True, "yes", "questions")
    assert (other.yes_no, other.answer, other.kind) == (False, "3", "count")


def test_the_methods_of_the_page_exist() -> None:
    (named,) = re.findall(r'methods="([^"]*)"', COMMAND)
    assert set(named.split()) <= set(METHODS)


@pytest.mark.slow
def test_the_command_runs_on_a_tiny_checkpoint(tmp_path: Path) -> None:
    model = tiny.llava(tmp_path / "model")
    words = with_values(
        model=str(model),
        questions=str(write_questions(tmp_path)),
        pictures=str(PICTURES),
        methods='"local checkerboard"',
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", words],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for method in ("local", "checkerboard"):
        rows = list(csv.DictReader((tmp_path / f"measured/{method}.csv").open()))
        assert {(row["kind"], row["ratio"]) for row in rows} == {
            (kind, ratio)
            for kind in ("questions", "count", "all")
            for ratio in ("1.0", "0.33", "0.2")
        }
        answers = (tmp_path / f"measured/{method}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(answers) == 1 + 6, "a second run asks nothing again"
