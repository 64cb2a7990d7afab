"""The recipe, fixed before the first step of training.

What it is for: a model on which methods of reduction can be ranked. In pretrained towers objects
receive more attention than background does. The demo of mosaics does not have this: there attention
received ranks objects below background in most layers, and all objects are of one size, so that the
language model can count by the share of tokens. A benchmark on which keeping every patch of every
object loses to keeping patches at random cannot rank methods that look for objects.

What follows from it, and what does not:

- Objects differ by a factor of three in radius and of nine in area, so that the share of tokens says
  nothing about how many there are.
- In the tower every patch learns what lies on it, and every patch learns what the whole picture
  holds, read after layer WHOLE_PICTURE_LAYER and after the last, both from the first step. To know
  the whole picture a patch has to attend objects, in the early layers too.
- The whole picture's content is which shapes, which colours and which coloured shapes are present,
  and never how many: to predict counts, patches learn to weigh tokens, and weights shift when
  background leaves. So that a language model can count, one patch of each object, the one nearest to
  its centre, learns that it is that patch; an object is then one mark, however many patches it has.
- The tower begins with the weights of the mosaic demo's, and sees large objects before all sizes:
  from random weights shapes stay at chance for hundreds of steps.
- The language model begins with the mosaic demo's, too. It first sees pictures of two or three
  objects and questions for colour, shape and place: with more it guesses from what is in the picture.
- No token is ever dropped or merged in training, so a reduction costs this model what it costs one
  that was not trained for it. No method's accuracy was looked at to choose anything here.

Before the language model is trained, and again after, gates (``gates.py``) say whether the purpose is
reached; training stops where one fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_export.demo.backgrounds import Split
from lvlm_export.demo.scenes import SIZES

WHOLE_PICTURE_LAYER = 4
"""After so many layers of twelve the whole picture's content is read for the first time."""

CHUNK = 2048
"""Pictures that are made, stored and shuffled together."""


@dataclass(frozen=True)
class PoolRecipe:
    """Pictures made once and seen several times.

    Attributes:
        name: Of its files.
        split: Whose photographs.
        first_seed: The pictures are of the seeds from here on.
        chunks: Of CHUNK pictures each.
        smallest: Radius of the smallest object in pixels.
    """

    name: str
    split: Split
    first_seed: int
    chunks: int
    smallest: float = SIZES[0]


POOLS: dict[str, PoolRecipe] = {
    pool.name: pool
    for pool in (
        PoolRecipe("large", "train", 100_000_000, chunks=4, smallest=11.0),
        PoolRecipe("all", "train", 200_000_000, chunks=20),
        # Of the test split's photographs, for the gates; evaluation_set has other seeds.
        PoolRecipe("gates", "test", 900_000_000, chunks=1),
    )
}


@dataclass(frozen=True)
class SceneStage:
    """One stage of training.

    Attributes:
        name: Of its files and its part of the log.
        trains: "tower", or "text" for projector and language model on the frozen tower's features.
        pool: Name of its pictures.
        steps: How many.
        batch_size: Pictures per step.
        learning_rate: The highest; 100 steps lead up to it and a cosine leads down to zero.
        objects: Fewest and most objects of the pictures that it takes.
        kinds: How many questions of a kind are asked about a picture.
    """

    name: str
    trains: str
    pool: str
    steps: int
    batch_size: int
    learning_rate: float
    objects: tuple[int, int] = (1, 6)
    kinds: tuple[tuple[str, int], ...] = ()


STAGES: tuple[SceneStage, ...] = (
    SceneStage("large", "tower", "large", steps=800, batch_size=32, learning_rate=1e-3),
    SceneStage("tower", "tower", "all", steps=4200, batch_size=32, learning_rate=1e-3),
    SceneStage(
        "words",
        "text",
        "all",
        steps=1500,
        batch_size=16,
        learning_rate=1e-3,
        objects=(2, 3),
        kinds=(("color", 3), ("shape", 3), ("place", 3), ("presence", 1)),
    ),
    SceneStage(
        "answers",
        "text",
        "all",
        steps=6500,
        batch_size=16,
        learning_rate=8e-4,
        kinds=(
            *(("color", 2), ("shape", 2), ("count", 2), ("place", 2)),
            *(("presence", 2), ("relation", 2), ("description", 1)),
        ),
    ),
)

GATED = ("tower", "answers")
"""After these stages gates are asked: of attention, and of an oracle's answers."""

SEED = 0
