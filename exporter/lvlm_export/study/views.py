"""What the model sees of a picture, as rasters of patches that are drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from lvlm_export.study.merging import Places
from lvlm_export.study.panels import Panel
from lvlm_runtime.image.anyres import SINGLE, TileLayout


@dataclass(frozen=True)
class PictureView:
    """One raster: the whole picture in one tile, or the tiles put together.

    Attributes:
        picture: What the model sees there.
        places: ``[rows, columns]``, numbers of the patches among those of all tiles.
    """

    picture: Image.Image
    places: Places


@dataclass(frozen=True)
class Seen:
    """A picture as it is and as the model sees it.

    Attributes:
        original: As it was given.
        views: One, or the whole picture and its tiles.
    """

    original: Image.Image
    views: tuple[PictureView, ...]


def make_views(
    tiles: Sequence[Image.Image], layout: TileLayout, rows: int, columns: int
) -> tuple[PictureView, ...]:
    """The views of a layout.

    Args:
        tiles: What the model sees in each, in its order.
        layout: Theirs.
        rows: Of patches, in a tile.
        columns: Likewise.
    """
    count = len(tiles)
    numbers = np.arange(count * rows * columns).reshape(count, rows, columns)
    if count == 1:
        return (PictureView(tiles[0], numbers[0]),)
    whole = 0 if layout.kind == SINGLE else count - 1
    parts = [tile for tile in range(count) if tile != whole]
    grid = (layout.grid_rows, layout.grid_cols)
    joint = numbers[parts].reshape(*grid, rows, columns).transpose(0, 2, 1, 3)
    width, height = tiles[0].size
    canvas = Image.new("RGB", (grid[1] * width, grid[0] * height))
    for place, tile in enumerate(parts):
        row, column = divmod(place, grid[1])
        canvas.paste(tiles[tile], (column * width, row * height))
    together = joint.reshape(grid[0] * rows, grid[1] * columns)
    return PictureView(tiles[whole], numbers[whole]), PictureView(canvas, together)


def panel_of(panel: Panel, view: PictureView) -> Panel:
    """The part of a panel that is a view's, its patches numbered row by row."""
    numbers = view.places.ravel()
    inside = np.full(max(int(panel.groups.max(initial=0)) + 1, len(panel.looks)), -1)
    inside[numbers] = np.arange(len(numbers))
    groups = panel.groups[numbers]
    at = inside[np.maximum(groups, 0)]
    # A token whose place is in another view has a colour here too, and no dot.
    named = np.where(at >= 0, at, len(numbers) + groups)
    return replace(
        panel,
        looks=panel.looks[numbers],
        groups=np.where(groups < 0, -1, named),
        columns=view.places.shape[1],
    )
