"""A model's own image preprocessing, in numpy and Pillow only.

The numbers are those of transformers 5.23's PIL image processors (CLIP, SigLIP, LLaVA,
LLaVA-NeXT and LLaVA-OneVision, Qwen2-VL, GOT-OCR2): same order, same integer rounding, same float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres, memory
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import Picture, load_image, picture_size, upright_size
from lvlm_runtime.image.pixels import center_crop, normalise, pad, resize, square
from lvlm_runtime.image.smart import smart_resize

__all__ = [
    "LayoutFit",
    "PreprocessSpec",
    "Preprocessed",
    "layout_fit",
    "load_image",
    "pixel_values",
    "preprocess",
]

RESIZE_EXACT = "exact"
RESIZE_SHORTEST_EDGE = "shortest_edge"


@dataclass(frozen=True)
class PreprocessSpec:
    """What a model's image processor does, in this order; None leaves a step out.

    Attributes:
        pad_to_square: RGB colour, 0 to 255, of the border that makes a picture square. With
            ``grid_pinpoints`` it applies to the "multi" layout alone.
        resize: "exact" to ``height`` x ``width``, "shortest_edge" to ``height`` keeping the aspect.
        height: Pixels; of the shortest edge where ``resize`` is "shortest_edge".
        width: Pixels; None where ``resize`` is "shortest_edge".
        resample: Pillow's code of the resize filter (3 is bicubic).
        center_crop: (height, width) in pixels, padded with black where the picture is smaller.
        rescale_factor: What every value, 0 to 255, is multiplied by.
        mean: Per channel, subtracted after rescaling.
        std: Per channel, divided by.
        grid_pinpoints: Canvases (height, width) of "anyres" tiling; None for one view a picture.
        feature_side: Features per tile edge of the unreduced vision tower (27 for SigLIP-so400m
            at 384 pixels); decides whether a picture's own "anyres" layout is the bundle's.
        tile_range: Fewest and most tiles of a picture that is cut into the grid whose aspect ratio
            is nearest to its own, with the whole picture behind them; None for other models.
        factor: Pixels along the edge of a token, where the model gives every picture a size of its
            own that is a multiple of it (``smart_resize``); ``height`` and ``width`` are then the
            one that the bundle is for. None for other models.
        min_pixels: Fewest that such a size has, unless a side is one token.
        max_pixels: Most that it has.
    """

    pad_to_square: tuple[int, int, int] | None = None
    resize: str | None = None
    height: int | None = None
    width: int | None = None
    resample: int = 3
    center_crop: tuple[int, int] | None = None
    rescale_factor: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    grid_pinpoints: tuple[tuple[int, int], ...] | None = None
    feature_side: int | None = None
    tile_range: tuple[int, int] | None = None
    factor: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a picture's tokens, where they follow from ``factor``."""
        if self.factor is None or self.height is None or self.width is None:
            return None
        return self.height // self.factor, self.width // self.factor


@dataclass(frozen=True)
class LayoutFit:
    """How one picture was brought to the bundle's layout.

    Attributes:
        image_height: Pixels of the picture as given.
        image_width: Pixels of the picture as given.
        letterboxed: The picture's own layout was another one, so it was padded with black to the
            layout's aspect ratio and treated as a picture of the layout's size. The result then
            differs from what the model's own processor gives.
        padded_height: Pixels after that padding; the picture's own where there was none.
        padded_width: Pixels after that padding; the picture's own where there was none.
    """

    image_height: int
    image_width: int
    letterboxed: bool
    padded_height: int
    padded_width: int


@dataclass(frozen=True)
class Preprocessed:
    """Pixel values and what was done to get them.

    Attributes:
        pixel_values: float32 ``[pictures * layout.tiles, 3, H, W]``, views of a picture together.
        fits: One per picture.
    """

    pixel_values: NDArray[np.float32]
    fits: tuple[LayoutFit, ...]


def pixel_values(
    images: Sequence[Picture], spec: PreprocessSpec, layout: TileLayout
) -> NDArray[np.float32]:
    """The ``pixel_values`` of ``preprocess``, for callers that show its ``fits`` elsewhere."""
    return preprocess(images, spec, layout).pixel_values


def preprocess(images: Sequence[Picture], spec: PreprocessSpec, layout: TileLayout) -> Preprocessed:
    """Turn pictures into a vision tower's input, one after the other.

    What they will take of memory is known from their sizes and checked before the first is decoded.

    A picture of a "single" layout whose own layout is another one is padded with black, centred,
    to the layout's aspect ratio, then treated as a picture of the layout's nominal size; its
    ``LayoutFit`` is then ``letterboxed``. Any other picture gives exactly what transformers gives.

    Args:
        images: Pictures as ``load_image`` takes them; exactly one for a "single" layout.
        spec: The model's preprocessing.
        layout: The bundle's layout.

    Raises:
        LvlmError: A picture cannot be read or takes too much memory, or the number of pictures or
            their shape does not suit the layout.
        ValueError: ``spec`` and ``layout`` do not belong together.
    """
    if not images:
        raise LvlmError("no picture was given; give at least one")
    if layout.kind == anyres.SINGLE and len(images) != 1:
        raise LvlmError(
            f"{len(images)} pictures were given, this model's tiles are laid out for exactly one; give"
            " one picture"
        )
    _check_memory(images, spec, layout)
    views: list[NDArray[np.uint8]] = []
    fits: list[LayoutFit] = []
    for source in images:
        image = load_image(source)
        fit = layout_fit(image.height, image.width, spec, layout)
        fits.append(fit)
        views += [_resize_and_crop(view, spec) for view in _views(image, fit, spec, layout)]
    shapes = {view.shape for view in views}
    if len(shapes) != 1:
        raise LvlmError(
            f"the pictures come out in {len(shapes)} sizes, one is needed: this model's "
            "preprocessing neither resizes nor crops to a fixed size; give pictures of one size"
        )
    return Preprocessed(
        normalise(np.stack(views), spec.rescale_factor, spec.mean, spec.std), tuple(fits)
    )


def choose_layout(
    images: Sequence[Picture], spec: PreprocessSpec, layouts: Sequence[TileLayout]
) -> TileLayout:
    """The layout of a request's pictures: their own, else what suits them by ``anyres.best_layout``.

    Pictures of one request have one layout; where they suit different ones it is the first.

    Args:
        images: At least one.
        spec: The model's preprocessing.
        layouts: Those that so many pictures may have, of one kind.

    Raises:
        LvlmError: A picture cannot be read or takes too much memory.
    """
    if len(layouts) == 1:
        return layouts[0]
    for layout in layouts:
        _check_memory(images, spec, layout)
    sizes = {upright_size(image) for image in images}
    suited = {_suited(*size, spec, layouts) for size in sizes}
    return suited.pop() if len(suited) == 1 else layouts[0]


def _suited(
    image_height: int, image_width: int, spec: PreprocessSpec, layouts: Sequence[TileLayout]
) -> TileLayout:
    """The picture's own layout where it is there, else the best of the others."""
    for layout in layouts:
        if not layout_fit(image_height, image_width, spec, layout).letterboxed:
            return layout
    assert spec.height is not None, "layouts of several sizes have tiles, and tiles a size"
    return anyres.best_layout(image_height, image_width, layouts, spec.height)


def layout_fit(
    image_height: int, image_width: int, spec: PreprocessSpec, layout: TileLayout
) -> LayoutFit:
    """How a picture of this size is brought to the layout, by arithmetic on its size alone."""
    as_it_is = LayoutFit(image_height, image_width, False, image_height, image_width)
    if spec.factor is not None:
        assert spec.min_pixels is not None
        assert spec.max_pixels is not None
        size = smart_resize(
            image_height, image_width, spec.factor, spec.min_pixels, spec.max_pixels
        )
        if size == (spec.height, spec.width):
            return as_it_is
        return _letterboxed(image_height, image_width, layout)
    if layout.kind == anyres.TILES:
        if spec.tile_range is None or spec.height is None:
            raise ValueError('a "tiles" layout needs tile_range and height')
        grid = anyres.nearest_grid(image_height, image_width, spec.height, *spec.tile_range)
        if grid == (layout.grid_rows, layout.grid_cols):
            return as_it_is
        return _letterboxed(image_height, image_width, layout)
    if layout.kind != anyres.SINGLE:
        return as_it_is
    if spec.grid_pinpoints is None or spec.height is None or spec.feature_side is None:
        raise ValueError('a "single" layout needs grid_pinpoints, height and feature_side')
    own = anyres.layout_for(image_height, image_width, spec.grid_pinpoints, spec.height)
    if anyres.same_layout(own, layout, spec.feature_side):
        return as_it_is
    return _letterboxed(image_height, image_width, layout)


def _letterboxed(image_height: int, image_width: int, layout: TileLayout) -> LayoutFit:
    """Padding to the aspect ratio of the picture that the layout is made for."""
    height, width = image_height, image_width
    if width * layout.image_height > height * layout.image_width:
        height = max(height, round(width * layout.image_height / layout.image_width))
    else:
        width = max(width, round(height * layout.image_width / layout.image_height))
    return LayoutFit(image_height, image_width, True, height, width)


def _check_memory(images: Sequence[Picture], spec: PreprocessSpec, layout: TileLayout) -> None:
    """LvlmError where a picture, or all results together, would take too much memory."""
    results = 0
    for image in images:
        height, width = picture_size(image)
        # Which side is up may stand behind the pixels; both ways have to fit.
        ways = [needed_bytes(*size, spec, layout) for size in ((height, width), (width, height))]
        memory.check_bytes(max(ways)[0], f"a picture of {height}x{width} pixels (height x width)")
        results += max(result for _, result in ways)
    memory.check_bytes(results, f"what the model sees of {len(images)} pictures")


def needed_bytes(
    height: int, width: int, spec: PreprocessSpec, layout: TileLayout
) -> tuple[int, int]:
    """Bytes that a picture of this size (pixels) takes at most, and its result alone.

    It follows the steps of ``preprocess``: every picture that is made on the way is counted, as if
    all were there at once, and beside them reading the file, which is over when they begin.
    """
    fit = layout_fit(height, width, spec, layout)
    shown, made, copies = (height, width), memory.stored_bytes(height, width), 1
    if layout.kind == anyres.SINGLE:
        if fit.letterboxed:
            shown = fit.padded_height, fit.padded_width
            made += memory.stored_bytes(*shown)
        tile = spec.height or 0
        canvas, copies = (layout.grid_rows * tile, layout.grid_cols * tile), layout.tiles
        nominal = (layout.image_height, layout.image_width) if fit.letterboxed else shown
        inside = anyres.patch_output_size(*nominal, *canvas)
        made += memory.resize_bytes(*shown, *inside, spec.resample)
        made += 2 * memory.stored_bytes(*canvas)
    elif fit.letterboxed:
        shown = fit.padded_height, fit.padded_width
        made += memory.stored_bytes(*shown)
    if layout.kind == anyres.TILES:
        tile = spec.height or 0
        canvas, copies = (layout.grid_rows * tile, layout.grid_cols * tile), layout.tiles
        made += memory.resize_bytes(*shown, *canvas, spec.resample) + memory.stored_bytes(*canvas)
    elif layout.kind != anyres.SINGLE and not fit.letterboxed and spec.pad_to_square is not None:
        shown = max(shown), max(shown)
        made += memory.stored_bytes(*shown)
    size = shown
    if spec.resize == RESIZE_EXACT and spec.height and spec.width:
        size = spec.height, spec.width
    elif spec.resize == RESIZE_SHORTEST_EDGE and spec.height:
        size = _shortest_edge_size(*shown, spec.height)
    if size != shown:
        made += memory.resize_bytes(*shown, *size, spec.resample)
    # As uint8 twice, of its own and stacked, and as float32.
    crop = spec.center_crop or size
    largest = max(size[0], crop[0]) * max(size[1], crop[1])
    result = copies * (6 * largest + 12 * crop[0] * crop[1])
    return max(memory.decode_bytes(height, width), made + result), result


def _views(
    image: Image.Image, fit: LayoutFit, spec: PreprocessSpec, layout: TileLayout
) -> list[Image.Image]:
    """The pictures, still of any size, that stand for one picture."""
    if layout.kind == anyres.TILES:
        if fit.letterboxed:
            image = pad(image, fit.padded_height, fit.padded_width, (0, 0, 0))
        return _cut(image, spec, layout)
    if layout.kind != anyres.SINGLE:
        if (layout.kind == anyres.MULTI) != (spec.grid_pinpoints is not None):
            raise ValueError(f"layout {layout.name!r} does not belong to {spec}")
        if fit.letterboxed:
            return [pad(image, fit.padded_height, fit.padded_width, (0, 0, 0))]
        return [image if spec.pad_to_square is None else square(image, spec.pad_to_square)]
    tile = spec.height or 0
    if fit.letterboxed:
        image = pad(image, fit.padded_height, fit.padded_width, (0, 0, 0))
        shown = layout.image_height, layout.image_width
    else:
        shown = image.height, image.width
    rows, cols = layout.grid_rows * tile, layout.grid_cols * tile
    height, width = anyres.patch_output_size(*shown, rows, cols)
    canvas = pad(resize(image, height, width, spec.resample), rows, cols, (0, 0, 0))
    return [resize(image, tile, tile, spec.resample), *_tiles_of(canvas, tile)]


def _tiles_of(canvas: Image.Image, tile: int) -> list[Image.Image]:
    """Squares of ``tile`` pixels, row by row."""
    return [
        canvas.crop((left, top, left + tile, top + tile))
        for top in range(0, canvas.height, tile)
        for left in range(0, canvas.width, tile)
    ]


def _cut(image: Image.Image, spec: PreprocessSpec, layout: TileLayout) -> list[Image.Image]:
    """The tiles of a picture that is stretched over their grid, and the whole of it behind them."""
    tile = spec.height or 0
    size = layout.grid_rows * tile, layout.grid_cols * tile
    tiles = _tiles_of(resize(image, *size, spec.resample), tile)
    return tiles if len(tiles) == 1 else [*tiles, image]


def _resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """One view ``[3, H, W]`` at the size that the vision tower takes."""
    if spec.resize == RESIZE_EXACT and spec.height and spec.width:
        image = resize(image, spec.height, spec.width, spec.resample)
    elif spec.resize == RESIZE_SHORTEST_EDGE and spec.height:
        size = _shortest_edge_size(image.height, image.width, spec.height)
        image = resize(image, *size, spec.resample)
    elif spec.resize is not None:
        raise ValueError(f"resize {spec.resize!r} to {spec.height} x {spec.width}")
    pixels = np.asarray(image).transpose(2, 0, 1)
    return pixels if spec.center_crop is None else center_crop(pixels, *spec.center_crop)


def _shortest_edge_size(height: int, width: int, shortest: int) -> tuple[int, int]:
    """As transformers: the long edge is rounded down, height comes first where both are equal."""
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)
