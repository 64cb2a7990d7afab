"""Mosaics and questions about them: repeatable, apart from training, balanced, answerable."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lvlm_export.demo.train.mosaics.mosaic import PLACES, Mosaic, make_mosaic
from lvlm_export.demo.train.mosaics.questions import KINDS, evaluation_set, questions_about
from lvlm_export.demo.train.mosaics.tiles import COLORS, SHAPES, load_tiles


def answer_from_cells(mosaic: Mosaic, question: str) -> str:
    """Answers by parsing the question's words, apart from the code that writes questions."""
    words = re.findall(r"[a-z]+", question.lower())
    places = [place for place in PLACES if f"in the {place}?" in question]
    colors = {word for word in words if word in COLORS}
    shapes = {word.removesuffix("s") for word in words if word.removesuffix("s") in SHAPES}
    here = [
        (place, cell)
        for place, cell in zip(PLACES, mosaic.cells, strict=True)
        if cell is not None
        and (not places or place in places)
        and (not colors or cell.color in colors)
        and (not shapes or cell.shape in shapes)
    ]
    if question.startswith("How many"):
        return str(len(here))
    if question.startswith("Is there"):
        return "yes" if here else "no"
    ((place, cell),) = here  # every other question is about exactly one cell
    if question.startswith("Where"):
        return place
    return cell.color if question.startswith("What color") else cell.shape


def test_mosaic_is_the_same_for_the_same_seed() -> None:
    first, second = make_mosaic(7, "train", flip=True), make_mosaic(7, "train", flip=True)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.cells == second.cells
    assert not np.array_equal(first.pixels, make_mosaic(8, "train", flip=True).pixels)


def test_evaluation_set_is_the_same_for_the_same_seed() -> None:
    first, second = evaluation_set(50, seed=3), evaluation_set(50, seed=3)
    for one, other in zip(first, second, strict=True):
        assert (one.question, one.answer, one.kind) == (other.question, other.answer, other.kind)
        assert one.image.tobytes() == other.image.tobytes()


def test_evaluation_set_asks_every_kind_equally_often() -> None:
    kinds = [sample.kind for sample in evaluation_set(100)]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 20)


@pytest.mark.parametrize("n", [0, -5, 12])
def test_evaluation_set_refuses_an_uneven_number(n: int) -> None:
    with pytest.raises(ValueError, match="multiple of 5"):
        evaluation_set(n)


def test_train_and_test_tiles_are_apart() -> None:
    train, test = load_tiles("train"), load_tiles("test")
    seen = {tile.tobytes() for tile in train.pixels}
    assert len(train.numbers) > 3000
    assert len(test.numbers) > 800
    assert not any(tile.tobytes() in seen for tile in test.pixels)


def test_labels_agree_with_the_pixels() -> None:
    """The colour name read from the questions is the colour in the middle of the shape."""
    tiles = load_tiles("test")
    middles = (tiles.boxes[:, :2] + tiles.boxes[:, 2:]) // 2
    inside = tiles.pixels[np.arange(len(middles)), middles[:, 0], middles[:, 1]]
    for color in range(len(COLORS)):
        assert len(np.unique(inside[tiles.colors == color], axis=0)) == 1, COLORS[color]


def test_yes_and_no_are_balanced() -> None:
    answers = [sample.answer for sample in evaluation_set(2500) if sample.kind == "yes_no"]
    assert len(answers) == 500
    assert 0.45 <= answers.count("yes") / len(answers) <= 0.55


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_follows_from_the_cells(split: str) -> None:
    for seed in range(40):
        mosaic = make_mosaic(seed, split)
        for kind, groups in questions_about(mosaic).items():
            for question in (question for group in groups for question in group):
                assert question.kind == kind
                assert question.answer == answer_from_cells(mosaic, question.text), question
