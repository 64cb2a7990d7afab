"""Tile geometry of pictures that are cut into a grid: integers in, integers out.

In "anyres" of LLaVA-NeXT and LLaVA-OneVision a single picture becomes a base view (the whole picture
in one tile) and a grid of tiles; the tiles' features are put back together, the rows or columns that
only show padding are dropped ("unpad"), and one newline feature ends every row. OneVision gives several
pictures one padded view each.
InternVL stretches a picture over its tiles, and their tokens follow one another.

A bundle holds graphs of fixed shape, so its layouts are fixed when it is built: a ``TileLayout``.

Source: arXiv:2408.03326 section 3.2; transformers 5.23, ``models/llava_onevision`` (processing,
``unpad_image``, ``pack_image_features``) and ``image_processing_utils``
(``select_best_resolution``, ``get_patch_output_size``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lvlm_runtime.errors import LvlmError

IMAGE = "image"
SINGLE = "single"
MULTI = "multi"
TILES = "tiles"


@dataclass(frozen=True)
class TileLayout:
    """The views that stand for one picture, fixed when a bundle is built.

    Attributes:
        name: Of its kind; where a bundle has several of a kind, all but the first have the picture's
            size behind it, "single-640x480" (width x height).
        tiles: Views per picture, the base view included.
        grid_rows: Rows of the tile grid; 0 where there is no grid.
        grid_cols: Columns of the tile grid; 0 where there is no grid.
        image_height: Height in pixels of the picture that the layout is made for; 0 for any.
        image_width: Width in pixels of the picture that the layout is made for; 0 for any.
        marks: Text of the prompt before a picture's tokens and behind them; empty for none.
    """

    name: str
    tiles: int
    grid_rows: int
    grid_cols: int
    image_height: int
    image_width: int
    marks: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the views are.

        "image" (one view, no anyres), "single" (base view and tiles), "multi" (one padded view per
        picture, a newline after each) or "tiles" (tiles and the whole picture behind them, whose tokens
        follow one another).
        """
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """The kind of a layout by its name."""
    return name.partition("-")[0]


IMAGE_LAYOUT = TileLayout(IMAGE, 1, 0, 0, 0, 0)
MULTI_LAYOUT = TileLayout(MULTI, 1, 0, 0, 0, 0)


def best_resolution(
    image_height: int, image_width: int, pinpoints: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """The canvas, (height, width) in pixels, that keeps most of a picture and wastes least.

    Raises:
        LvlmError: The picture is empty.
        ValueError: There are no canvases.
    """
    if image_height < 1 or image_width < 1:
        raise LvlmError(
            f"a picture of {image_height}x{image_width} pixels has no layout; give one of at "
            "least 1x1"
        )
    best: tuple[int, int] | None = None
    most_kept, least_wasted = 0, math.inf
    for height, width in pinpoints:
        scale = min(width / image_width, height / image_height)
        shown = int(image_width * scale) * int(image_height * scale)
        kept = min(shown, image_width * image_height)
        wasted = height * width - kept
        if kept > most_kept or (kept == most_kept and wasted < least_wasted):
            most_kept, least_wasted, best = kept, wasted, (height, width)
    if best is None:
        raise ValueError("no canvas to choose from: pinpoints are empty")
    return best


def layout_for(
    image_height: int, image_width: int, pinpoints: Sequence[Sequence[int]], tile_size: int
) -> TileLayout:
    """The layout that the model gives a single picture of this size (pixels).

    Args:
        image_height: Height of the picture.
        image_width: Width of the picture.
        pinpoints: The canvases (height, width) that the model was trained with.
        tile_size: Pixels per tile edge.

    Raises:
        LvlmError: The picture is empty, or its canvas is not made of whole tiles.
    """
    height, width = best_resolution(image_height, image_width, pinpoints)
    if height % tile_size or width % tile_size:
        raise LvlmError(
            f"the canvas {height}x{width} in image_grid_pinpoints is not made of whole "
            f"{tile_size}-pixel tiles; correct image_grid_pinpoints or the image size"
        )
    rows, cols = height // tile_size, width // tile_size
    return TileLayout(SINGLE, 1 + rows * cols, rows, cols, image_height, image_width)


def nearest_grid(
    image_height: int, image_width: int, tile_size: int, fewest: int, most: int
) -> tuple[int, int]:
    """Rows and columns of the tiles whose aspect ratio is nearest to a picture's.

    Of ratios that are as near, the one of more tiles, as long as these are less than twice the
    picture. Source: arXiv:2404.16821 section 3.2; transformers 5.23, ``get_optimal_tiled_canvas`` of
    ``models/got_ocr2``.

    Args:
        image_height: Height of the picture in pixels.
        image_width: Width of the picture in pixels.
        tile_size: Pixels per tile edge.
        fewest: Tiles.
        most: Tiles.

    Raises:
        LvlmError: The picture is empty.

    Example:
        >>> nearest_grid(448, 896, 448, 1, 12)
        (1, 2)
    """
    if image_height < 1 or image_width < 1:
        raise LvlmError(
            f"a picture of {image_height}x{image_width} pixels has no layout; give one of at "
            "least 1x1"
        )
    sides = range(1, most + 1)
    grids = [(rows, cols) for cols in sides for rows in sides if fewest <= rows * cols <= most]
    return _nearest(image_height, image_width, tile_size, grids)


def _nearest(
    image_height: int, image_width: int, tile_size: int, grids: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    best, nearest = (1, 1), math.inf
    for rows, cols in sorted(grids, key=math.prod):
        apart = abs(image_width / image_height - cols / rows)
        room = image_width * image_height > 0.5 * tile_size * tile_size * cols * rows
        if apart < nearest or (apart == nearest and room):
            best, nearest = (rows, cols), apart
    return best


def best_layout(
    image_height: int, image_width: int, layouts: Sequence[TileLayout], tile_size: int
) -> TileLayout:
    """Of layouts of one kind that a bundle has, the one that suits a picture best.

    The model's own rule chooses among the grids that are there, as if it had been trained with no
    others; of layouts with one grid, the one whose picture has the most similar aspect ratio.

    Args:
        image_height: Height of the picture in pixels.
        image_width: Width of the picture in pixels.
        layouts: "single" or "tiles".
        tile_size: Pixels per tile edge.

    Raises:
        LvlmError: The picture is empty.

    Example:
        >>> flat, tall = (tiles_layout(*size, 448, 1, 12) for size in ((448, 896), (896, 448)))
        >>> best_layout(1080, 1920, (flat, tall), 448) is flat
        True
    """
    grids = [(each.grid_rows, each.grid_cols) for each in layouts]
    if layouts[0].kind == TILES:
        grid = _nearest(image_height, image_width, tile_size, grids)
    else:
        canvases = [(rows * tile_size, cols * tile_size) for rows, cols in grids]
        height, width = best_resolution(image_height, image_width, canvases)
        grid = height // tile_size, width // tile_size

    def apart(layout: TileLayout) -> float:
        ratio = image_width * layout.image_height / (image_height * layout.image_width)
        return abs(math.log(ratio))

    suited = (each for each in layouts if (each.grid_rows, each.grid_cols) == grid)
    return min(suited, key=apart)


def further_layout(layout: TileLayout) -> TileLayout:
    """A layout under the name that it has beside another of its kind."""
    return replace(layout, name=f"{layout.kind}-{layout.image_width}x{layout.image_height}")


def tiles_layout(
    image_height: int,
    image_width: int,
    tile_size: int,
    fewest: int,
    most: int,
    marks: tuple[str, ...] = (),
) -> TileLayout:
    """The "tiles" layout of a picture of this size; arguments as ``nearest_grid`` takes them."""
    rows, cols = nearest_grid(image_height, image_width, tile_size, fewest, most)
    tiles = rows * cols + (rows * cols > 1)
    return TileLayout(TILES, tiles, rows, cols, image_height, image_width, marks)


def patch_output_size(
    image_height: int, image_width: int, canvas_height: int, canvas_width: int
) -> tuple[int, int]:
    """(height, width) in pixels of a picture scaled to fit a canvas, rounded up as HF does."""
    scale_height, scale_width = canvas_height / image_height, canvas_width / image_width
    if scale_width < scale_height:
        return min(math.ceil(image_height * scale_width), canvas_height), canvas_width
    return canvas_height, min(math.ceil(image_width * scale_height), canvas_width)


def _unpadded(layout: TileLayout, side: int) -> tuple[int, int, int, int]:
    """As ``unpadded_grid``, where nothing may be left."""
    rows, cols = layout.grid_rows * side, layout.grid_cols * side
    height, width = layout.image_height, layout.image_width
    if width / height > cols / rows:
        padding = (rows - int(round(height * (cols / width), 7))) // 2
        return rows - 2 * padding, cols, padding, 0
    padding = (cols - int(round(width * (rows / height), 7))) // 2
    return rows, cols - 2 * padding, 0, padding


def unpadded_grid(layout: TileLayout, side: int) -> tuple[int, int, int, int]:
    """The part of the tiles' joint feature map that shows the picture and not padding.

    Args:
        layout: A "single" layout.
        side: Features per tile edge; fewer than the vision tower's own after a reduction.

    Returns:
        (rows, cols, row0, col0) of the ``[grid_rows * side, grid_cols * side]`` map.

    Raises:
        ValueError: The layout has no grid, or ``side`` is below 1.
        LvlmError: The picture is so narrow that nothing is left.
    """
    if layout.kind != SINGLE or side < 1:
        raise ValueError(f"no tile grid to unpad: layout {layout}, side {side}")
    rows, cols, row0, col0 = _unpadded(layout, side)
    if rows < 1 or cols < 1:
        raise LvlmError(
            f"a picture of {layout.image_height}x{layout.image_width} pixels is too narrow: with "
            f"{side} features per tile edge its unpadded grid is {rows}x{cols}, at least 1x1 is "
            "needed; crop it or build for another picture size"
        )
    return rows, cols, row0, col0


def max_patches_shape(rows: int, cols: int, side: int, max_patches: int | None) -> tuple[int, int]:
    """(rows, cols) after the bilinear shrink of "anyres_max_<max_patches>"; the same if none.

    Args:
        rows: Rows of the unpadded feature map.
        cols: Columns of the unpadded feature map.
        side: Features per tile edge.
        max_patches: Tiles' worth of features that the map may hold; None for any number.

    Raises:
        LvlmError: The shrink leaves no row or no column.
    """
    if max_patches is None:
        return rows, cols
    ratio = math.sqrt(rows * cols / (max_patches * side**2))
    if ratio <= 1.1:
        return rows, cols
    shrunk = int(rows // ratio), int(cols // ratio)
    if min(shrunk) < 1:
        raise LvlmError(
            f"a {rows}x{cols} feature map shrunk to anyres_max_{max_patches} is "
            f"{shrunk[0]}x{shrunk[1]}, at least 1x1 is needed; build for a less narrow picture"
        )
    return shrunk


def visual_tokens(layout: TileLayout, side: int, max_patches: int | None) -> int:
    """Visual tokens of one picture, newlines included.

    Args:
        layout: The picture's layout.
        side: Features per tile edge.
        max_patches: The number in the model's "anyres_max_<number>", None where it has none; has an
            effect only in a "single" layout.
    """
    if layout.kind == IMAGE:
        return side * side
    if layout.kind == MULTI:
        return side * side + 1
    rows, cols = max_patches_shape(*unpadded_grid(layout, side)[:2], side, max_patches)
    return side * side + rows * cols + rows


def same_layout(one: TileLayout, other: TileLayout, side: int) -> bool:
    """Whether two "single" layouts give a graph the same shapes and the same unpadded part."""
    same_grid = (one.grid_rows, one.grid_cols) == (other.grid_rows, other.grid_cols)
    return same_grid and _unpadded(one, side) == _unpadded(other, side)
