"""Questions about mosaics, with answers computed from the cells.

Five kinds: the colour and the shape in a cell or of a unique object, how many of something, where
a unique object is, and whether something is there (half of these answers are "yes").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lvlm_export.demo.questions import PLACES, draw_questions
from lvlm_export.demo.train.mosaics.mosaic import Cell, Mosaic, make_mosaic
from lvlm_export.demo.train.mosaics.tiles import COLORS, SHAPES

KINDS: tuple[str, ...] = ("color", "shape", "count", "place", "yes_no")

# Seeds of evaluation pictures start here, far above those that training counts up from 0.
_EVALUATION_SEED_STRIDE = 1_000_000


@dataclass(frozen=True)
class MosaicQuestion:
    """One question in words, its answer, and its kind (one of KINDS)."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True, eq=False)
class MosaicSample:
    """One evaluation item: a picture ``[112, 112]`` RGB, a question about it and the answer."""

    image: Image.Image
    question: str
    answer: str
    kind: str


def questions_about(mosaic: Mosaic) -> dict[str, list[list[MosaicQuestion]]]:
    """Every question about a mosaic.

    Returns:
        Per kind of KINDS, groups of questions: one group per wording (and, for yes_no, per answer),
        each possibly empty. Drawing first a group and then a question of it balances the wordings
        and the yes/no answers.
    """
    return {
        "color": [list(_color_by_place(mosaic)), list(_color_by_shape(mosaic))],
        "shape": [list(_shape_by_place(mosaic)), list(_shape_by_color(mosaic))],
        "count": [
            [_count(mosaic, "shapes", mosaic.filled)],
            [_count(mosaic, f"{name}s", _having(mosaic, shape=name)) for name in SHAPES],
            [_count(mosaic, f"{name} shapes", _having(mosaic, color=name)) for name in COLORS],
        ],
        "place": [list(_place_of_object(mosaic))],
        "yes_no": [
            [question for question in group if question.answer == answer]
            for group in (list(_is_there_object(mosaic)), list(_is_cell_filled(mosaic)))
            for answer in ("yes", "no")
        ],
    }


def training_questions_about(mosaic: Mosaic) -> dict[str, list[list[MosaicQuestion]]]:
    """As ``questions_about``, and two easier wordings for a place, which only training uses.

    "Where is the blue triangle?" needs colour and shape at once. A model with only that question
    learned to look for the shape and to guess among those that have it; with questions for a colour
    alone, it learned to look for colours too.
    """
    return {
        **questions_about(mosaic),
        "place_by_color": [list(_place_of_color(mosaic))],
        "place_by_shape": [list(_place_of_shape(mosaic))],
    }


def listing_question(mosaic: Mosaic) -> MosaicQuestion:
    """The question for all cells at once; only in training, where one answer teaches nine cells."""
    cells = ["no shape" if cell is None else f"{cell.color} {cell.shape}" for cell in mosaic.cells]
    return MosaicQuestion("What shapes are there?", ", ".join(cells), "listing")


def evaluation_set(n: int, seed: int = 0) -> list[MosaicSample]:
    """Make ``n`` samples about mosaics of test tiles: five per picture, one of each kind.

    Args:
        n: Number of questions, a multiple of five.
        seed: Another seed gives other pictures.

    Raises:
        ValueError: ``n`` is not a positive multiple of five.
    """
    if n <= 0 or n % len(KINDS):
        raise ValueError(f"n={n}: give a positive multiple of {len(KINDS)} (one of each kind)")
    samples: list[MosaicSample] = []
    picture_seed = (seed + 1) * _EVALUATION_SEED_STRIDE
    while len(samples) < n:
        mosaic = make_mosaic(picture_seed, "test")
        samples.extend(_one_of_each_kind(mosaic, np.random.default_rng(picture_seed)))
        picture_seed += 1
    return samples


def _one_of_each_kind(mosaic: Mosaic, rng: np.random.Generator) -> list[MosaicSample]:
    """One sample per kind, or none at all where some kind has no question."""
    drawn = draw_questions(questions_about(mosaic), dict.fromkeys(KINDS, 1), rng)
    if len(drawn) < len(KINDS):
        return []
    return [
        MosaicSample(mosaic.image, question.text, question.answer, question.kind)
        for question in drawn
    ]


def _having(mosaic: Mosaic, **wanted: str) -> list[Cell]:
    """Filled cells whose fields equal the wanted ones."""
    return [
        cell
        for cell in mosaic.filled
        if all(getattr(cell, field) == value for field, value in wanted.items())
    ]


def _filled_places(mosaic: Mosaic) -> Iterator[tuple[str, Cell]]:
    for place, cell in zip(PLACES, mosaic.cells, strict=True):
        if cell is not None:
            yield place, cell


def _at(place: str) -> str:
    return f"in the {place}"


def _color_by_place(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in _filled_places(mosaic):
        yield MosaicQuestion(f"What color is the shape {_at(place)}?", cell.color, "color")


def _color_by_shape(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for cell in mosaic.filled:
        if len(_having(mosaic, shape=cell.shape)) == 1:
            yield MosaicQuestion(f"What color is the {cell.shape}?", cell.color, "color")


def _shape_by_place(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in _filled_places(mosaic):
        yield MosaicQuestion(f"What shape is {_at(place)}?", cell.shape, "shape")


def _shape_by_color(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for cell in mosaic.filled:
        if len(_having(mosaic, color=cell.color)) == 1:
            yield MosaicQuestion(f"What is the {cell.color} shape?", cell.shape, "shape")


def _count(mosaic: Mosaic, what: str, cells: list[Cell] | tuple[Cell, ...]) -> MosaicQuestion:
    return MosaicQuestion(f"How many {what} are there?", str(len(cells)), "count")


def _place_of_object(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in _filled_places(mosaic):
        if len(_having(mosaic, color=cell.color, shape=cell.shape)) == 1:
            yield MosaicQuestion(f"Where is the {cell.color} {cell.shape}?", place, "place")


def _place_of_color(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in _filled_places(mosaic):
        if len(_having(mosaic, color=cell.color)) == 1:
            yield MosaicQuestion(f"Where is the {cell.color} shape?", place, "place")


def _place_of_shape(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in _filled_places(mosaic):
        if len(_having(mosaic, shape=cell.shape)) == 1:
            yield MosaicQuestion(f"Where is the {cell.shape}?", place, "place")


def _is_there_object(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    """Only about colours that are in the picture: "no" for an absent one would be too easy."""
    present = [color for color in COLORS if _having(mosaic, color=color)]
    for color in present:
        for shape in SHAPES:
            answer = "yes" if _having(mosaic, color=color, shape=shape) else "no"
            yield MosaicQuestion(f"Is there a {color} {shape}?", answer, "yes_no")


def _is_cell_filled(mosaic: Mosaic) -> Iterator[MosaicQuestion]:
    for place, cell in zip(PLACES, mosaic.cells, strict=True):
        answer = "no" if cell is None else "yes"
        yield MosaicQuestion(f"Is there a shape {_at(place)}?", answer, "yes_no")
