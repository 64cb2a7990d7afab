"""What the demo ships: pictures with their questions, a small checkpoint, and how answers are scored."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from lvlm_export.demo import CHECKPOINT, PICTURES
from lvlm_export.demo.evaluate import score_answers
from lvlm_export.demo.questions import KINDS, evaluation_set
from lvlm_export.demo.scenes import IMAGE_SIZE

MAX_CHECKPOINT_BYTES = 12_000_000


def test_score_counts_exact_matches_per_kind() -> None:
    samples = evaluation_set(2 * len(KINDS))
    answers = [sample.answer for sample in samples]
    answers[0] = "nonsense"
    answers[1] = f" {answers[1]} "  # outer white space does not count
    table = score_answers(samples, answers)
    assert (table["color"].right, table["color"].total) == (1, 2)
    assert table["all"].share == pytest.approx(13 / 14)


def test_data_and_evaluation_need_no_torch() -> None:
    code = "import sys, lvlm_export.demo.evaluate; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_example_pictures_match_their_questions() -> None:
    items = json.loads((PICTURES / "questions.json").read_text())
    names = sorted({item["image"] for item in items})
    assert names == [f"scene_{number}.png" for number in range(6)]
    for name in names:
        assert [item["kind"] for item in items if item["image"] == name] == list(KINDS)
        with Image.open(PICTURES / name) as image:
            assert image.size == (IMAGE_SIZE, IMAGE_SIZE)


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= MAX_CHECKPOINT_BYTES
