"""easy-VQA tiles: 64x64 pictures of one coloured shape each, with labels read from their questions.

Source: https://github.com/vzhou842/easy-VQA (MIT, (c) 2019 Victor Zhou). The zip has no label
table, only questions with answers; a tile's shape and colour follow from them, or the tile is left
out (about one in nine).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from lvlm_export.demo.train.mosaics import TILES_ZIP
from lvlm_profiles.readers import decode, parse_json

Split = Literal["train", "test"]

SHAPES: tuple[str, ...] = ("circle", "rectangle", "triangle")
COLORS: tuple[str, ...] = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
TILE_SIZE = 64

# A shape's pixels differ from its pastel background by more than this in some channel (0 to 255);
# the edges of easy-VQA's shapes are hard, so the exact number does not matter.
_SHAPE_CONTRAST = 24


@dataclass(frozen=True)
class TileSet:
    """All labelled tiles of one split.

    Attributes:
        numbers: The tile's number in the zip, int ``[N]``.
        pixels: uint8 RGB ``[N, 64, 64, 3]``.
        shapes: Index into SHAPES, int ``[N]``.
        colors: Index into COLORS, int ``[N]``.
        boxes: The shape's bounding box in pixels, int ``[N, 4]``: top, left, bottom, right
            (exclusive).
        backgrounds: uint8 RGB ``[N, 3]``.
    """

    numbers: np.ndarray
    pixels: np.ndarray
    shapes: np.ndarray
    colors: np.ndarray
    boxes: np.ndarray
    backgrounds: np.ndarray


@lru_cache(maxsize=2)
def load_tiles(split: Split) -> TileSet:
    """Decode the tiles of one split of the zip; a split never reads the other one's files."""
    with zipfile.ZipFile(TILES_ZIP) as archive:
        labels = _labels(parse_json(decode(archive.read(f"{split}/questions.json"))))
        numbers = sorted(labels)
        pixels = np.stack(
            [_decode(archive.read(f"{split}/images/{number}.png")) for number in numbers]
        )
    backgrounds = np.median(pixels.reshape(len(pixels), -1, 3), axis=1).astype(np.uint8)
    return TileSet(
        numbers=np.array(numbers),
        pixels=pixels,
        shapes=np.array([SHAPES.index(labels[number][0]) for number in numbers]),
        colors=np.array([COLORS.index(labels[number][1]) for number in numbers]),
        boxes=np.stack([_shape_box(*pair) for pair in zip(pixels, backgrounds, strict=True)]),
        backgrounds=backgrounds,
    )


def _decode(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _shape_box(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Box ``[top, left, bottom, right]`` in pixels of what differs from the background."""
    difference = np.abs(pixels.astype(np.int16) - background.astype(np.int16)).max(axis=-1)
    rows, columns = np.nonzero(difference > _SHAPE_CONTRAST)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def _labels(questions: list[tuple[str, str, int]]) -> dict[int, tuple[str, str]]:
    """Shape and colour per tile number, for the tiles whose questions name both.

    Every tile holds one shape, so whatever an answer affirms is true of it: "what is the red
    shape?" -> "circle", "is there a circle?" -> "yes", "is there not a circle?" -> "no".
    """
    facts: dict[int, set[str]] = {}
    for question, answer, number in questions:
        words = set(question.rstrip("?").split())
        negated = bool(words & {"not", "no"})
        if answer not in ("yes", "no") or (answer == "yes") != negated:
            affirmed = (words | {answer}) & {*SHAPES, *COLORS}
            facts.setdefault(number, set()).update(affirmed)
    labels = {}
    for number, words in facts.items():
        shapes, colors = words & set(SHAPES), words & set(COLORS)
        if len(shapes) > 1 or len(colors) > 1:
            raise ValueError(f"tile {number}: contradicting answers {sorted(words)}")
        if shapes and colors:
            labels[number] = (shapes.pop(), colors.pop())
    return labels
