"""Scenes and questions about them: the same everywhere, apart from training, answerable."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lvlm_export.demo import PHOTOS
from lvlm_export.demo.backgrounds import PHOTO_NAMES
from lvlm_export.demo.questions import (
    KINDS,
    PLACES,
    SceneQuestion,
    evaluation_set,
    plural,
    questions_about,
)
from lvlm_export.demo.scenes import (
    BACKGROUND,
    COLORS,
    MOST_OBJECTS,
    OWNED_SHARE,
    SHAPES,
    SIZES,
    UNCLEAR,
    VISIBLE_SHARE,
    Scene,
    Thing,
    make_scene,
    patch_owners,
)

# Of the pixels of the first 60 scenes of each split. Whoever changes how scenes are made changes what
# the checkpoint was trained and measured on.
DIGESTS = {
    "train": "2486facbc8778b173463908a023381fc9b1992f2a4c61e83b7ec26d54cb7e9e6",
    "test": "3ef4d5dc83e973d4ef0ee740fdc575b1fe940d12f3d5bba9e26aa93623a07681",
}
AREAS = {
    "circle": np.pi,
    "square": 2 * 1.25**2,
    "triangle": 0.75 * np.sqrt(3) * 1.45**2,
    "star": 5 * 1.5 * 0.65 * np.sin(np.pi / 5),
    "cross": 2 * 2.5 * 0.84 - 0.84**2,
    "ring": np.pi * (1.44 - 0.36),
}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {split: [make_scene(seed, split) for seed in range(60)] for split in ("train", "test")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_seed_gives_the_same_picture_everywhere(
    scenes: dict[str, list[Scene]], split: str
) -> None:
    digest = hashlib.sha256()
    for scene in scenes[split]:
        digest.update(scene.pixels.tobytes())
    assert digest.hexdigest() == DIGESTS[split]


def test_scenes_hold_one_to_six_objects_of_all_kinds_and_sizes(
    scenes: dict[str, list[Scene]],
) -> None:
    counts = Counter(len(scene.things) for scene in scenes["train"])
    assert set(counts) == set(range(1, MOST_OBJECTS + 1))
    things = [thing for scene in scenes["train"] for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.color for thing in things} == set(COLORS)
    assert (SIZES[0], SIZES[-1]) == (6.0, 18.0)
    assert {thing.size for thing in things} <= set(SIZES)
    assert max(thing.size for thing in things) > 2.5 * min(thing.size for thing in things)


def test_most_of_every_object_is_visible(scenes: dict[str, list[Scene]]) -> None:
    """Against the shapes' areas by formula; some objects are covered or cut off, none by much."""
    shares = [
        int(seen.sum(dtype=np.int64)) / 16 / (AREAS[thing.shape] * thing.size**2)
        for scene in scenes["train"]
        for thing, seen in zip(scene.things, scene.visible, strict=True)
    ]
    assert min(shares) > VISIBLE_SHARE - 0.03
    assert max(shares) < 1.03
    assert sum(share < 0.95 for share in shares) > 10


def test_an_object_lies_where_its_name_says(scenes: dict[str, list[Scene]]) -> None:
    """The middle of the visible pixels is near the centre, and they have the object's colour."""
    rgb = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
    rgb |= {"cyan": (0, 1, 1), "white": (1, 1, 1), "black": (0, 0, 0)}
    for scene in scenes["test"]:
        for thing, seen in zip(scene.things, scene.visible, strict=True):
            rows, columns = np.nonzero(seen == 16)
            assert abs(rows.mean() - thing.y) < 0.5 * thing.size
            assert abs(columns.mean() - thing.x) < 0.5 * thing.size
            if thing.color in rgb:
                bright = np.median(scene.pixels[rows, columns], axis=0) > 110
                assert tuple(bright.astype(int)) == rgb[thing.color], thing


def test_patches_have_owners(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["train"][:20]:
        owners, total = patch_owners(scene)
        assert set(owners.tolist()) >= set(range(len(scene.things)))
        for patch in range(196):
            row, column = 8 * (patch // 14), 8 * (patch % 14)
            inside = scene.visible[:, row : row + 8, column : column + 8]
            shares = inside.reshape(len(scene.things), -1).mean(axis=1) / 16
            assert total[patch] == pytest.approx(shares.sum())
            if owners[patch] >= 0:
                assert shares[owners[patch]] == shares.max() >= OWNED_SHARE
            else:
                assert owners[patch] == (BACKGROUND if shares.sum() < 0.05 else UNCLEAR)


def test_train_and_test_photographs_are_apart() -> None:
    assert not set(PHOTO_NAMES["train"]) & set(PHOTO_NAMES["test"])
    names = {name for split in PHOTO_NAMES.values() for name in split}
    assert {path.stem for path in PHOTOS.glob("*.png")} == names
    licences = (PHOTOS / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"`{name}.png`" in licences
        with Image.open(PHOTOS / f"{name}.png") as image:
            assert max(image.size) <= 320


def test_large_objects_alone_can_be_asked_for() -> None:
    scene = make_scene(3, "train", smallest=11.0)
    assert min(thing.size for thing in scene.things) >= 11
    with pytest.raises(ValueError, match="smallest=20: objects are at most 18 pixels in radius"):
        make_scene(0, "train", smallest=20)


def answer_from(things: tuple[Thing, ...], text: str) -> str:
    """Answers by parsing the question's words, apart from the code that writes questions."""
    words = re.findall(r"[a-z]+", text.lower())
    shapes = [shape for word in words for shape in SHAPES if word in (shape, plural(shape))]
    colors = [word for word in words if word in COLORS]
    place = next((place for place in PLACES if place in text), None)

    def place_of(thing: Thing) -> str:
        return PLACES[3 * int(3 * thing.y / 112) + int(3 * thing.x / 112)]

    if text.startswith(("Which", "Is the ")):
        one, other = (next(t for t in things if t.shape == shape) for shape in shapes)
        if text.startswith("Which"):
            return (one if one.size > other.size else other).shape
        first = one.x < other.x if " left " in text else one.y < other.y
        return "yes" if first else "no"
    here = [
        thing
        for thing in things
        if (not shapes or thing.shape in shapes)
        and (not colors or thing.color in colors)
        and (place is None or place_of(thing) == place)
    ]
    if text.startswith("How many"):
        return str(len(here))
    if text.startswith("Is there"):
        return "yes" if here else "no"
    if text.startswith("What is there"):
        names = [f"a {t.color} {t.shape}" for t in sorted(things, key=lambda thing: thing.x)]
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    (thing,) = here  # every other question is about exactly one object
    if text.startswith("Where"):
        return place_of(thing)
    if text.startswith("Describe"):
        return f"a {thing.color} {thing.shape} in the {place_of(thing)}"
    return thing.color if text.startswith("What color") else thing.shape


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_follows_from_the_objects(scenes: dict[str, list[Scene]], split: str) -> None:
    seen: set[str] = set()
    for scene in scenes[split]:
        for kind, groups in questions_about(scene.things).items():
            for question in (question for group in groups for question in group):
                assert question.kind == kind
                assert question.answer == answer_from(scene.things, question.text), question
                seen.add(kind)
    assert seen == set(KINDS)


def test_what_hangs_on_a_few_pixels_is_not_asked() -> None:
    """Two objects side by side near the border of two places, of nearly one size."""
    things = (Thing("circle", "red", 38.0, 20.0, 8.0), Thing("ring", "blue", 44.0, 60.0, 9.0))
    asked = [q for groups in questions_about(things).values() for group in groups for q in group]
    texts = {question.text for question in asked}
    assert "Is the circle above the ring?" in texts
    assert not texts & {
        "Where is the circle?",
        "What color is the shape in the top left?",
        "Describe the circle.",
        "Is the circle left of the ring?",
        "Which is bigger, the circle or the ring?",
        "What is there from left to right?",
    }


def test_names_are_asked_of_single_objects_only() -> None:
    things = (Thing("circle", "red", 20.0, 20.0, 8.0), Thing("circle", "blue", 90.0, 90.0, 8.0))
    groups = questions_about(things)
    assert groups["relation"] == [[], [], []]
    assert groups["color"][0] == []
    expected = SceneQuestion("What is the red shape?", "circle", "shape")
    assert groups["shape"][0][0] == expected


def test_evaluation_set_asks_every_kind_in_turn() -> None:
    samples = evaluation_set(80, seed=2)
    assert [sample.kind for sample in samples] == [KINDS[i % 7] for i in range(80)]
    assert [sample.picture for sample in samples] == [i // 7 for i in range(80)]
    for one, other in zip(samples, evaluation_set(80, seed=2), strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
    assert samples[0].image.tobytes() != evaluation_set(7, seed=3)[0].image.tobytes()


def test_an_evaluation_set_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0: give a positive number of questions"):
        evaluation_set(0)


def test_yes_and_no_are_balanced(scenes: dict[str, list[Scene]]) -> None:
    left = Counter(
        question.answer
        for scene in scenes["train"]
        for question in questions_about(scene.things)["relation"][1]
    )
    assert left["yes"] == left["no"] > 0
    answers = Counter(s.answer for s in evaluation_set(700) if s.kind == "presence")
    assert 35 <= answers["yes"] <= 65
