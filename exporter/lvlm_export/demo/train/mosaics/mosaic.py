"""3x3 mosaics of easy-VQA tiles, made from a seed with numpy and Pillow only.

Tiles are cut out at their own resolution, never resized, so the same seed gives the same bytes
with every version of Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from lvlm_export.demo.questions import PLACES
from lvlm_export.demo.train.mosaics.tiles import (
    COLORS,
    SHAPES,
    TILE_SIZE,
    Split,
    TileSet,
    load_tiles,
)

IMAGE_SIZE = 112
"""Width and height of a mosaic in pixels."""

CELL_EDGES: tuple[int, ...] = (0, 37, 75, 112)
"""Pixel rows (and columns) where the three cells of a column (row) begin and end."""

_FILLED_CELLS = (4, 8)
_COLORS_PER_MOSAIC = (3, 5)


@dataclass(frozen=True)
class Cell:
    """What one filled cell shows."""

    shape: str
    color: str
    tile: int  # number of the tile in its split of the zip


@dataclass(frozen=True, eq=False)
class Mosaic:
    """One picture and what it shows.

    Attributes:
        pixels: uint8 RGB ``[112, 112, 3]``.
        cells: Nine cells in the order of PLACES; None is a blank one.
    """

    pixels: np.ndarray
    cells: tuple[Cell | None, ...]

    @cached_property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    @property
    def filled(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell is not None)


def make_mosaic(seed: int, split: Split, *, flip: bool = False) -> Mosaic:
    """Make the mosaic of a seed.

    Args:
        seed: Any non-negative integer; the same seed and split give the same picture.
        split: Which tiles to use. Pictures of "test" share no tile with pictures of "train".
        flip: Mirror half of the tiles left to right, to see more than the tiles themselves in
            training. Triangles point up, so nothing is ever turned over.
    """
    tiles = load_tiles(split)
    rng = np.random.default_rng([seed, ("train", "test").index(split)])
    # Few colours per picture make them repeat: then counts vary, and a colour or a shape alone
    # rarely identifies the cell that a question means.
    palette = rng.permutation(len(COLORS))[: rng.integers(*_COLORS_PER_MOSAIC, endpoint=True)]
    candidates = np.flatnonzero(np.isin(tiles.colors, palette))
    filled = rng.permutation(len(PLACES))[: rng.integers(*_FILLED_CELLS, endpoint=True)]
    pixels = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    cells: list[Cell | None] = []
    for place in range(len(PLACES)):
        rows, columns = _cell_slices(place)
        index = int(rng.choice(candidates))
        if place not in filled:
            pixels[rows, columns] = tiles.backgrounds[index]
            cells.append(None)
            continue
        crop = _crop(tiles, index, rows.stop - rows.start, columns.stop - columns.start, rng)
        mirrored = flip and rng.random() < 0.5
        pixels[rows, columns] = crop[:, ::-1] if mirrored else crop
        cells.append(_cell(tiles, index))
    return Mosaic(pixels, tuple(cells))


def _cell(tiles: TileSet, index: int) -> Cell:
    return Cell(
        shape=SHAPES[tiles.shapes[index]],
        color=COLORS[tiles.colors[index]],
        tile=int(tiles.numbers[index]),
    )


def _cell_slices(place: int) -> tuple[slice, slice]:
    row, column = divmod(place, 3)
    return (
        slice(CELL_EDGES[row], CELL_EDGES[row + 1]),
        slice(CELL_EDGES[column], CELL_EDGES[column + 1]),
    )


def _crop(
    tiles: TileSet, index: int, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """A random window ``[height, width, 3]`` of the tile that holds its whole shape."""
    top, left, bottom, right = tiles.boxes[index]
    y = rng.integers(max(0, bottom - height), min(top, TILE_SIZE - height), endpoint=True)
    x = rng.integers(max(0, right - width), min(left, TILE_SIZE - width), endpoint=True)
    return tiles.pixels[index, y : y + height, x : x + width]
