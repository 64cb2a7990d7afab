"""Reading questions, scoring answers, intervals, and continuing a run that stopped."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvlm_export.cli.commands.eval import write_csv
from lvlm_export.study.answers import Answer
from lvlm_export.study.evaluation import (
    Question,
    first_per_kind,
    is_right,
    read_questions,
    tabulate,
    wilson_interval,
)
from lvlm_runtime.errors import LvlmError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"not looked at")
    return tmp_path


def write(path: Path, *entries: Any) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def question(number: int, kind: str = "colour", answer: str = "red") -> Question:
    return Question(f"q.jsonl:{number}", Path("a.png"), f"Question {number}?", answer, kind, False)


def answer(key: str, ratio: float, right: bool, kind: str = "colour") -> Answer:
    return Answer(key, ratio, kind, "?", "red", "red" if right else "blue", right)


def test_both_formats_are_read(folder: Path) -> None:
    plain = write(
        folder / "mine.jsonl",
        {"image": "a.png", "question": "Which colour?", "answer": "Red"},
        {"image": "a.png", "question": "How many?", "answer": "2", "kind": "count"},
    )
    pope = write(
        folder / "coco_pope_random.jsonl.gz",
        {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "no"},
    )
    first, second = read_questions(plain, None)
    assert (first.kind, second.kind) == ("mine", "count")
    assert first.key == "mine.jsonl:1"
    (third,) = read_questions(pope, folder)
    assert (third.question, third.answer, third.kind) == (
        "Is there a dog?",
        "no",
        "coco_pope_random",
    )
    assert third.yes_no
    assert not first.yes_no


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1], "mine.jsonl:1 is not a JSON object"),
        ({"image": "a.png", "question": "?"}, "mine.jsonl:1 has no text under 'answer'"),
        ({"image": "a.png", "question": "?", "answer": 2}, "has no text under 'answer'"),
        (
            {"image": "b.png", "question": "?", "answer": "x"},
            r"names the picture .*b.png, which is",
        ),
        ({"image": "a.png", "text": "?", "label": "maybe"}, "has the label 'maybe'; POPE's are"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, entry: Any, message: str) -> None:
    with pytest.raises(LvlmError, match=message):
        read_questions(write(folder / "mine.jsonl", entry), None)


def test_one_array_is_read_as_lines_are(folder: Path) -> None:
    entries = [
        {"image": "a.png", "question": "How many?", "answer": "3", "kind": "count"},
        {"image": "a.png", "text": "Is there a dog?", "label": "no"},
    ]
    (folder / "mine.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    read = read_questions(folder / "mine.json", None)
    assert read[0].key == "mine.json:1"
    lines = read_questions(write(folder / "mine.jsonl", *entries), None)
    assert [replace(each, key="") for each in read] == [replace(each, key="") for each in lines]
    (folder / "mine.json").write_text("[{]", encoding="utf-8")
    with pytest.raises(LvlmError, match="is no file of JSON lines and no JSON array"):
        read_questions(folder / "mine.json", None)
    (folder / "mine.json").write_text("[]", encoding="utf-8")
    with pytest.raises(LvlmError, match="holds no question"):
        read_questions(folder / "mine.json", None)


def test_a_file_that_is_none_is_named(folder: Path) -> None:
    with pytest.raises(LvlmError, match="there is no data file"):
        read_questions(folder / "none.jsonl", None)
    with pytest.raises(LvlmError, match="holds no question"):
        read_questions(write(folder / "empty.jsonl"), None)
    (folder / "bad.jsonl").write_text("{")
    with pytest.raises(
        LvlmError,
        match=r"bad\.jsonl is no file of JSON lines and no JSON array, plain or \.gz \(line 1: Expecting",
    ):
        read_questions(folder / "bad.jsonl", None)
    (folder / "bad.jsonl.gz").write_text("{")
    with pytest.raises(
        LvlmError,
        match=r"is no file of JSON lines and no JSON array, plain or \.gz \(it is no gzip file",
    ):
        read_questions(folder / "bad.jsonl.gz", None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes.", "yes"),
        ("No, there is no dog.", "no"),
        ("There is not a dog", "no"),
        ("A dog. No cat.", "yes"),
        ("Nothing", "yes"),
    ],
)
def test_pope_answers_count_by_their_first_sentence(text: str, label: str) -> None:
    pope_question = Question("k", Path("a"), "?", label, "pope", True)
    assert is_right(pope_question, text)


def test_plain_answers_count_but_for_case_space_and_stop() -> None:
    assert is_right(question(1), " Red. ")
    assert not is_right(question(1), "dark red")


def test_wilson_intervals_are_the_textbook_ones() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_the_table_compares_with_the_same_questions_unreduced() -> None:
    full = [answer(f"k{i}", 1.0, i < 8) for i in range(10)]
    half = [answer(f"k{i}", 0.5, i in (0, 1, 2, 3, 9)) for i in range(10)]
    first, second = tabulate([*full, *half])
    assert (first.ratio, first.right, first.questions, first.change) == (1.0, 8, 10, None)
    assert (second.accuracy, second.lost, second.won) == (0.5, 4, 1)
    assert second.change == pytest.approx(-0.3)


def test_several_kinds_have_a_sum_and_no_baseline_no_change() -> None:
    rows = tabulate([answer("a", 0.5, True, "x"), answer("b", 0.5, False, "y")])
    assert [(row.kind, row.right, row.questions) for row in rows] == [
        ("x", 1, 1),
        ("y", 0, 1),
        ("all", 1, 2),
    ]
    assert {row.change for row in rows} == {None}


def test_limit_counts_per_kind() -> None:
    questions = [question(i, kind) for i, kind in enumerate("aabab")]
    assert [q.key for q in first_per_kind(questions, 1)] == ["q.jsonl:0", "q.jsonl:2"]


def test_the_table_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(tabulate([answer("a", 0.5, True)]), path)
    (row,) = csv.DictReader(path.open(encoding="utf-8"))
    assert (row["kind"], row["ratio"], row["accuracy"], row["change"]) == (
        "colour",
        "0.5",
        "1.0",
        "",
    )
