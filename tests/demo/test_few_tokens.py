"""The table of QueCC and training-free methods at the same token counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvlm_export.demo.train.mosaics.few_tokens import (
    METHODS,
    RESULT,
    TOKENS,
    as_markdown,
    measure_training_free,
)
from lvlm_export.demo.train.mosaics.train_quecc import training_of
from lvlm_export.demo.train.table import QUESTIONS


@pytest.mark.slow
def test_a_method_is_asked_at_a_count(tmp_path: Path) -> None:
    right, total = measure_training_free("downsample", 16, tmp_path, 20)
    assert total == 20
    assert 0 <= int(right) <= 20


def test_a_method_that_does_not_reach_a_count_says_why(tmp_path: Path) -> None:
    reason = measure_training_free("tome", 1, tmp_path, 20)
    assert isinstance(reason, str)
    assert "196 of a tile cannot become 1" in reason


def test_rows_are_ordered_and_what_is_missing_is_a_dash() -> None:
    def accuracy(*right: int) -> dict[str, list[int] | str]:
        return {str(n): [r, 100] for n, r in zip(TOKENS, right, strict=True)}

    result = {
        "quecc": {str(n): {"accuracy": [90, 100]} for n in TOKENS},
        "training_free": {"a": accuracy(9, 5, 4), "b": {**accuracy(70, 6, 5), "1": "too few"}},
    }
    rows = as_markdown(result).splitlines()[2:]
    assert rows == [
        "| `quecc`, trained | 90.0% | 90.0% | 90.0% |",
        "| `b` | 70.0% | 6.0% | - |",
        "| `a` | 9.0% | 5.0% | 4.0% |",
    ]


def test_the_history_of_a_checkpoint_is_kept(tmp_path: Path) -> None:
    log = {"name": "quecc_4", "steps": 3, "points": [{"step": 3, "right": 0.5}]}
    log["before"] = [{"name": "quecc_16", "steps": 5, "last": {}}]
    (tmp_path / "training_log.json").write_text(json.dumps(log), encoding="utf-8")
    stages = training_of(tmp_path)
    assert [(stage["name"], stage["steps"]) for stage in stages] == [
        ("quecc_16", 5),
        ("quecc_4", 3),
    ]
    assert stages[-1]["last"] == {"step": 3, "right": 0.5}


def test_the_committed_result_is_whole() -> None:
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert result["questions"] == QUESTIONS
    assert set(result["training_free"]) == set(METHODS)
    for tokens in map(str, TOKENS):
        assert result["quecc"][tokens]["accuracy"][1] == QUESTIONS
        scores = [row[tokens] for row in result["training_free"].values()]
        assert all(isinstance(each, str) or each[1] == QUESTIONS for each in scores)
