"""A model's own image preprocessing, in numpy and Pillow only.

The numbers are those of transformers 5.23's PIL image processors (CLIP, SigLIP, LLaVA and
LLaVA-OneVision): same order, same integer rounding, same float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import MAX_PICTURE_PIXELS, load_image

__all__ = [
    "LayoutFit",
    "PreprocessSpec",
    "Preprocessed",
    "layout_fit",
    "load_image",
    "pixel_values",
    "preprocess",
]

MAX_WORKING_PIXELS = 4 * MAX_PICTURE_PIXELS
"""The largest picture that padding or resizing may make on the way to the model's size."""

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
    images: Sequence[Image.Image], spec: PreprocessSpec, layout: TileLayout
) -> NDArray[np.float32]:
    """The ``pixel_values`` of ``preprocess``, for callers that show its ``fits`` elsewhere."""
    return preprocess(images, spec, layout).pixel_values


def preprocess(
    images: Sequence[Image.Image], spec: PreprocessSpec, layout: TileLayout
) -> Preprocessed:
    """Turn RGB pictures into a vision tower's input.

    A picture of a "single" layout whose own layout is another one is padded with black, centred,
    to the layout's aspect ratio, then treated as a picture of the layout's nominal size; its
    ``LayoutFit`` says so. Any other picture gives exactly what transformers gives.

    Args:
        images: RGB pictures; exactly one for a "single" layout.
        spec: The model's preprocessing.
        layout: The bundle's layout.

    Raises:
        LvlmError: The number of pictures or their shape does not suit the layout.
        ValueError: ``spec`` and ``layout`` do not belong together.
    """
    if not images:
        raise LvlmError("no picture was given; give at least one")
    if layout.name == anyres.SINGLE and len(images) != 1:
        raise LvlmError(
            f"{len(images)} pictures were given, this bundle's layout takes exactly one; give one "
            "picture, or build with the layout for several pictures"
        )
    views: list[NDArray[np.uint8]] = []
    fits: list[LayoutFit] = []
    for image in images:
        fit = layout_fit(image.height, image.width, spec, layout)
        fits.append(fit)
        views += [_resize_and_crop(view, spec) for view in _views(image, fit, spec, layout)]
    shapes = {view.shape for view in views}
    if len(shapes) != 1:
        raise LvlmError(
            f"the pictures come out in {len(shapes)} sizes, one is needed: this model's "
            "preprocessing neither resizes nor crops to a fixed size; give pictures of one size"
        )
    return Preprocessed(_normalise(np.stack(views), spec), tuple(fits))


def layout_fit(
    image_height: int, image_width: int, spec: PreprocessSpec, layout: TileLayout
) -> LayoutFit:
    """How a picture of this size is brought to the layout, by arithmetic on its size alone."""
    as_it_is = LayoutFit(image_height, image_width, False, image_height, image_width)
    if layout.name != anyres.SINGLE:
        return as_it_is
    if spec.grid_pinpoints is None or spec.height is None or spec.feature_side is None:
        raise ValueError('a "single" layout needs grid_pinpoints, height and feature_side')
    own = anyres.layout_for(image_height, image_width, spec.grid_pinpoints, spec.height)
    if anyres.same_layout(own, layout, spec.feature_side):
        return as_it_is
    height, width = image_height, image_width
    if width * layout.image_height > height * layout.image_width:
        height = max(height, round(width * layout.image_height / layout.image_width))
    else:
        width = max(width, round(height * layout.image_width / layout.image_height))
    return LayoutFit(image_height, image_width, True, height, width)


def _views(
    image: Image.Image, fit: LayoutFit, spec: PreprocessSpec, layout: TileLayout
) -> list[Image.Image]:
    """The pictures, still of any size, that stand for one picture."""
    if layout.name != anyres.SINGLE:
        if (layout.name == anyres.MULTI) != (spec.grid_pinpoints is not None):
            raise ValueError(f"layout {layout.name!r} does not belong to {spec}")
        return [image if spec.pad_to_square is None else _square(image, spec.pad_to_square)]
    tile = spec.height or 0
    if fit.letterboxed:
        image = _pad(image, fit.padded_height, fit.padded_width, (0, 0, 0))
        shown = layout.image_height, layout.image_width
    else:
        shown = image.height, image.width
    rows, cols = layout.grid_rows * tile, layout.grid_cols * tile
    height, width = anyres.patch_output_size(*shown, rows, cols)
    canvas = _pad(_resize(image, height, width, spec.resample), rows, cols, (0, 0, 0))
    tiles = [
        canvas.crop((left, top, left + tile, top + tile))
        for top in range(0, rows, tile)
        for left in range(0, cols, tile)
    ]
    return [_resize(image, tile, tile, spec.resample), *tiles]


def _resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """One view ``[3, H, W]`` at the size that the vision tower takes."""
    if spec.resize == RESIZE_EXACT and spec.height and spec.width:
        image = _resize(image, spec.height, spec.width, spec.resample)
    elif spec.resize == RESIZE_SHORTEST_EDGE and spec.height:
        # As transformers: the long edge is rounded down, height comes first where both are equal.
        height, width = image.height, image.width
        if width <= height:
            size = int(spec.height * height / width), spec.height
        else:
            size = spec.height, int(spec.height * width / height)
        image = _resize(image, *size, spec.resample)
    elif spec.resize is not None:
        raise ValueError(f"resize {spec.resize!r} to {spec.height} x {spec.width}")
    pixels = np.asarray(image).transpose(2, 0, 1)
    return pixels if spec.center_crop is None else _center_crop(pixels, *spec.center_crop)


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Cut ``[3, H, W]`` to ``[3, height, width]``, with black where it is smaller."""
    _, old_height, old_width = pixels.shape
    # As transformers: the border is put on first, its odd pixel above and to the left.
    above, left = max(0, height - old_height + 1) // 2, max(0, width - old_width + 1) // 2
    if above or left:
        larger = np.zeros((3, max(height, old_height), max(width, old_width)), pixels.dtype)
        larger[:, above : above + old_height, left : left + old_width] = pixels
        pixels = larger
    top = (old_height - height) // 2 + above
    start = (old_width - width) // 2 + left
    return pixels[:, top : top + height, start : start + width]


def _square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of its longer edge."""
    edge = max(image.height, image.width)
    return _pad(image, edge, edge, colour)


def _pad(image: Image.Image, height: int, width: int, colour: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a larger one; an odd pixel goes below or to the right."""
    if (image.height, image.width) == (height, width):
        return image
    _check_working_size(image, height, width)
    padded = Image.new("RGB", (width, height), colour)
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def _resize(image: Image.Image, height: int, width: int, resample: int) -> Image.Image:
    """The picture at another size; Pillow gives a plain copy where the size is the same."""
    _check_working_size(image, height, width)
    return image.resize((width, height), Image.Resampling(resample))


def _check_working_size(image: Image.Image, height: int, width: int) -> None:
    if height * width > MAX_WORKING_PIXELS:
        raise LvlmError(
            f"a picture of {image.height}x{image.width} pixels has to become {height}x{width} for "
            f"this model, {MAX_WORKING_PIXELS} pixels are allowed: it is too narrow or too large; "
            "crop it first"
        )


def _normalise(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """Rescale and normalise ``[N, 3, H, W]``.

    A value has 256 possible results per channel, so they are looked up in a table: the arithmetic
    is that of transformers (float64 product, then float32), done for 256 values only.
    """
    values = np.arange(256, dtype=np.float64)
    if spec.rescale_factor is not None:
        values = values * spec.rescale_factor
    table = np.tile(values.astype(np.float32), (3, 1))
    if spec.mean is not None and spec.std is not None:
        mean = np.array(spec.mean, dtype=np.float32)[:, None]
        table = (table - mean) / np.array(spec.std, dtype=np.float32)[:, None]
    result = np.empty(pixels.shape, dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, channel], out=result[:, channel])
    return result
