"""Questions about scenes, with answers computed from the objects.

Seven kinds: the colour, the shape and the place of an object, how many of something, whether something
is there (half of these answers are "yes"), how two objects relate, and a short description. Every
question has one right answer that can be seen: what would hang on a few pixels is not asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import TypeVar

import numpy as np
from PIL import Image

from lvlm_export.demo.scenes import COLORS, IMAGE_SIZE, SHAPES, Thing, make_scene

QuestionT = TypeVar("QuestionT")

PLACES: tuple[str, ...] = (
    *("top left", "top middle", "top right"),
    *("middle left", "center", "middle right"),
    *("bottom left", "bottom middle", "bottom right"),
)
"""Names of a picture's nine parts, row by row."""

KINDS: tuple[str, ...] = (
    *("color", "shape", "count", "place", "presence", "relation", "description"),
)

_CELL = IMAGE_SIZE / 3
_FROM_BORDER = 3.0  # pixels that a centre is away from the border of its place where that is asked
_APART = 10.0  # pixels between two centres from which on one is left of or above the other
_BIGGER = 1.4  # ratio of radii from which on one is bigger
_MOST_LISTED = 3  # objects of a picture whose listing is asked

# Seeds of evaluation pictures start here, far above those that example pictures count up from 0.
_EVALUATION_SEED_STRIDE = 1_000_000


@dataclass(frozen=True)
class SceneQuestion:
    """One question in words, its answer, and its kind (one of KINDS)."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True, eq=False)
class SceneSample:
    """One evaluation item: a picture ``[112, 112]`` RGB, a question about it and the answer.

    Attributes:
        picture: Number of the picture in its set; a picture's samples lie side by side.
    """

    image: Image.Image
    question: str
    answer: str
    kind: str
    picture: int


def questions_about(things: Sequence[Thing]) -> dict[str, list[list[SceneQuestion]]]:
    """Every question about some objects.

    Returns:
        Per kind of KINDS, groups of questions: one group per wording (and, for presence, per answer),
        each possibly empty. Drawing first a group and then a question of it balances the wordings
        and the yes/no answers.
    """
    single = _single(things)
    return {
        "color": [
            [
                SceneQuestion(f"What color is the {name}?", thing.color, "color")
                for name, thing in named
            ]
            for named in (single["shape"], single["place"])
        ],
        "shape": [
            [SceneQuestion(f"What is the {name}?", thing.shape, "shape") for name, thing in named]
            for named in (single["color"], single["place"])
        ],
        "count": _counts(things),
        "place": [
            [
                SceneQuestion(f"Where is the {name}?", place, "place")
                for name, thing in named
                if (place := place_of(thing)) is not None
            ]
            for named in (single["shape"], single["color"], single["both"])
        ],
        "presence": _presences(things),
        "relation": _relations(single["shape"]),
        "description": [
            list(_listing(things)),
            [
                SceneQuestion(
                    f"Describe the {name}.",
                    f"a {thing.color} {thing.shape} in the {place}",
                    "description",
                )
                for named in (single["shape"], single["color"])
                for name, thing in named
                if (place := place_of(thing)) is not None
            ],
        ],
    }


def evaluation_set(n: int, seed: int = 0) -> list[SceneSample]:
    """Make ``n`` samples about scenes on photographs that training never saw.

    Pictures that allow a question of each kind are asked one of each, in the order of KINDS; the last
    one may be asked fewer.

    Args:
        n: Number of questions.
        seed: Another seed gives other pictures.

    Raises:
        ValueError: ``n`` is not positive.
    """
    if n <= 0:
        raise ValueError(f"n={n}: give a positive number of questions")
    samples: list[SceneSample] = []
    picture, picture_seed = 0, (seed + 1) * _EVALUATION_SEED_STRIDE
    while len(samples) < n:
        scene = make_scene(picture_seed, "test")
        asked = one_of_each_kind(scene.things, np.random.default_rng(picture_seed))
        samples.extend(
            SceneSample(scene.image, each.text, each.answer, each.kind, picture) for each in asked
        )
        picture, picture_seed = picture + bool(asked), picture_seed + 1
    return samples[:n]


def one_of_each_kind(things: Sequence[Thing], rng: np.random.Generator) -> list[SceneQuestion]:
    """One question per kind, or none at all where some kind has none."""
    drawn = draw_questions(questions_about(things), dict.fromkeys(KINDS, 1), rng)
    return drawn if len(drawn) == len(KINDS) else []


def draw_question(
    groups: Mapping[str, Sequence[Sequence[QuestionT]]], kind: str, rng: np.random.Generator
) -> QuestionT | None:
    """Draw one question of a kind, or None where the picture allows none of that kind."""
    askable = [group for group in groups[kind] if group]
    if not askable:
        return None
    group = askable[int(rng.integers(len(askable)))]
    return group[int(rng.integers(len(group)))]


def draw_questions(
    groups: Mapping[str, Sequence[Sequence[QuestionT]]],
    per_kind: Mapping[str, int],
    rng: np.random.Generator,
) -> list[QuestionT]:
    """``per_kind`` questions of each kind, as far as the picture allows any."""
    kinds = [kind for kind, count in per_kind.items() for _ in range(count)]
    drawn = [draw_question(groups, kind, rng) for kind in kinds]
    return [question for question in drawn if question is not None]


def place_of(thing: Thing) -> str | None:
    """Name of the place of an object's centre, None near a border between two."""
    for at in (thing.x, thing.y):
        if min(abs(at - _CELL), abs(at - 2 * _CELL)) < _FROM_BORDER:
            return None
    return PLACES[int(thing.y // _CELL) * 3 + int(thing.x // _CELL)]


Named = list[tuple[str, Thing]]


def _single(things: Sequence[Thing]) -> dict[str, Named]:
    """Words that mean exactly one object: by its shape, its colour, both, or its place."""
    shapes = Counter(thing.shape for thing in things)
    colors = Counter(thing.color for thing in things)
    both = Counter((thing.color, thing.shape) for thing in things)
    return {
        "shape": [(thing.shape, thing) for thing in things if shapes[thing.shape] == 1],
        "color": [(f"{thing.color} shape", thing) for thing in things if colors[thing.color] == 1],
        "both": [
            (f"{thing.color} {thing.shape}", thing)
            for thing in things
            if both[thing.color, thing.shape] == 1
        ],
        "place": [
            (f"shape in the {place}", thing)
            for thing in things
            if (place := place_of(thing)) is not None
            and not any(_may_be_in(other, place) for other in things if other is not thing)
        ],
    }


def _may_be_in(thing: Thing, place: str) -> bool:
    """Whether an object's centre is in a place or within _FROM_BORDER of it."""
    row, column = divmod(PLACES.index(place), 3)
    return all(
        number * _CELL - _FROM_BORDER <= at <= (number + 1) * _CELL + _FROM_BORDER
        for number, at in ((column, thing.x), (row, thing.y))
    )


def plural(shape: str) -> str:
    """More than one of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _counts(things: Sequence[Thing]) -> list[list[SceneQuestion]]:
    def asked(what: str, number: int) -> SceneQuestion:
        return SceneQuestion(f"How many {what} are there?", str(number), "count")

    shapes = Counter(thing.shape for thing in things)
    colors = Counter(thing.color for thing in things)
    return [
        [asked("shapes", len(things))],
        [asked(plural(name), number) for name, number in shapes.items()],
        [asked(f"{name} shapes", number) for name, number in colors.items()],
    ]


def _presences(things: Sequence[Thing]) -> list[list[SceneQuestion]]:
    """No is asked of absent shapes, and of shapes and colours that are there but not together."""
    shapes = [name for name in SHAPES if any(thing.shape == name for thing in things)]
    colors = [name for name in COLORS if any(thing.color == name for thing in things)]
    both = {f"{thing.color} {thing.shape}" for thing in things}
    pairs = [f"{color} {shape}" for color in colors for shape in shapes]
    groups = (
        (shapes, "yes"),
        ([name for name in SHAPES if name not in shapes], "no"),
        ([name for name in pairs if name in both], "yes"),
        ([name for name in pairs if name not in both], "no"),
    )
    return [
        [SceneQuestion(f"Is there a {name}?", answer, "presence") for name in names]
        for names, answer in groups
    ]


def _relations(named: Named) -> list[list[SceneQuestion]]:
    bigger, left, above = [], [], []
    for (one, a), (other, b) in permutations(named, 2):
        if max(a.size, b.size) >= _BIGGER * min(a.size, b.size):
            answer = one if a.size > b.size else other
            text = f"Which is bigger, the {one} or the {other}?"
            bigger.append(SceneQuestion(text, answer, "relation"))
        if abs(a.x - b.x) >= _APART:
            answer = "yes" if a.x < b.x else "no"
            text = f"Is the {one} left of the {other}?"
            left.append(SceneQuestion(text, answer, "relation"))
        if abs(a.y - b.y) >= _APART:
            answer = "yes" if a.y < b.y else "no"
            text = f"Is the {one} above the {other}?"
            above.append(SceneQuestion(text, answer, "relation"))
    return [bigger, left, above]


def _listing(things: Sequence[Thing]) -> Iterator[SceneQuestion]:
    """All objects from left to right, where they are few and the order is clear."""
    ordered = sorted(things, key=lambda thing: thing.x)
    if len(things) > _MOST_LISTED or any(b.x - a.x < _APART for a, b in pairwise(ordered)):
        return
    words = [f"a {thing.color} {thing.shape}" for thing in ordered]
    listed = ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
    yield SceneQuestion("What is there from left to right?", listed, "description")
