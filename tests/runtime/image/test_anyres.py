"""Tile geometry against transformers' own functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_ocr2
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionModel,
    image_size_to_num_patches,
    unpad_image,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, MULTI_LAYOUT, TileLayout

TILE = 384
PINPOINTS = [[TILE * rows, TILE * cols] for rows in range(1, 7) for cols in range(1, 7)]

sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
sides = st.integers(1, 40)


def layout_or_assume(height: int, width: int, side: int) -> TileLayout:
    """The layout of a drawn size; sizes that are refused as too narrow are drawn again."""
    try:
        layout = anyres.layout_for(height, width, PINPOINTS, TILE)
        anyres.unpadded_grid(layout, side)
    except LvlmError:
        assume(False)
    return layout


@given(sizes)
def test_grid_and_scaled_size_are_those_of_transformers(size: tuple[int, int]) -> None:
    expected = select_best_resolution(size, PINPOINTS)
    assert anyres.best_resolution(*size, PINPOINTS) == expected
    layout = anyres.layout_for(*size, PINPOINTS, TILE)
    assert layout.tiles == image_size_to_num_patches(size, PINPOINTS, TILE)
    assert (layout.grid_rows * TILE, layout.grid_cols * TILE) == expected
    image = torch.empty(3, *size)
    assert anyres.patch_output_size(*size, *expected) == get_patch_output_size(
        image.numpy(), expected, ChannelDimension.FIRST
    )


@given(sizes, sides)
def test_unpadded_grid_is_unpad_image(size: tuple[int, int], side: int) -> None:
    layout = layout_or_assume(*size, side)
    rows, cols, row0, col0 = anyres.unpadded_grid(layout, side)
    height, width = layout.grid_rows * side, layout.grid_cols * side
    index = torch.arange(height * width).reshape(1, height, width)
    expected = unpad_image(index, size)
    assert torch.equal(index[:, row0 : row0 + rows, col0 : col0 + cols], expected)


@given(sizes, sides, st.integers(1, 12))
def test_visual_tokens_are_those_of_the_processor(
    size: tuple[int, int], side: int, max_patches: int
) -> None:
    layout = layout_or_assume(*size, side)
    processor = object.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens = side * side
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=PINPOINTS)
    processor.vision_aspect_ratio = f"anyres_max_{max_patches}"
    expected = processor._get_number_of_features(*size, TILE, TILE)
    try:
        tokens = anyres.visual_tokens(layout, side, max_patches)
    except LvlmError:  # shrunk to nothing: the model fails there, the processor counts newlines
        assume(False)
    assert tokens == expected


@pytest.mark.parametrize("side", [27, 19, 5])
@pytest.mark.parametrize("size", [(300, 451), (427, 640), (1200, 300), (2304, 2304), (50, 50)])
def test_visual_tokens_are_those_of_the_model(size: tuple[int, int], side: int) -> None:
    layout = anyres.layout_for(*size, PINPOINTS, TILE)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=TILE, patch_size=TILE // side),
        image_grid_pinpoints=PINPOINTS,
    )
    if config.vision_config.image_size // config.vision_config.patch_size != side:
        config.vision_config = SimpleNamespace(image_size=side * 14, patch_size=14)
        config.image_grid_pinpoints = [
            [h // TILE * side * 14, w // TILE * side * 14] for h, w in PINPOINTS
        ]
        layout = anyres.layout_for(*size, config.image_grid_pinpoints, side * 14)
    packed, lengths = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config),
        [torch.zeros(layout.tiles, side * side, 2)],
        [size],
        image_newline=torch.zeros(2),
    )
    assert lengths.tolist() == [len(packed[0])] == [anyres.visual_tokens(layout, side, 9)]


def test_layouts_without_a_grid_have_fixed_token_counts() -> None:
    assert anyres.visual_tokens(IMAGE_LAYOUT, 24, 9) == 576
    assert anyres.visual_tokens(MULTI_LAYOUT, 27, 9) == 730


def test_same_grid_with_other_unpadding_is_another_layout() -> None:
    one = anyres.layout_for(600, 600, PINPOINTS, TILE)
    other = anyres.layout_for(560, 600, PINPOINTS, TILE)
    assert (one.grid_rows, one.grid_cols) == (other.grid_rows, other.grid_cols) == (2, 2)
    assert not anyres.same_layout(one, other, 27)
    assert anyres.same_layout(one, anyres.layout_for(599, 600, PINPOINTS, TILE), 27)


def test_no_canvas_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="pinpoints are empty"):
        anyres.layout_for(300, 400, [], TILE)


def test_nothing_left_after_unpadding_is_refused() -> None:
    layout = TileLayout("single", 3, 1, 2, 1, 700)
    with pytest.raises(LvlmError, match="unpadded grid is 0x8"):
        anyres.unpadded_grid(layout, 4)


def test_an_empty_picture_has_no_layout() -> None:
    with pytest.raises(LvlmError, match="0x5 pixels has no layout"):
        anyres.layout_for(0, 5, PINPOINTS, TILE)


def test_a_canvas_of_broken_tiles_is_refused() -> None:
    with pytest.raises(LvlmError, match=r"canvas 400x384 .* not made of whole 384-pixel tiles"):
        anyres.layout_for(400, 384, [[400, 384]], TILE)


def test_shrinking_to_nothing_is_refused() -> None:
    with pytest.raises(LvlmError, match="shrunk to anyres_max_1 is 0x"):
        anyres.max_patches_shape(1, 54, 4, 1)


def test_a_layout_without_grid_cannot_be_unpadded() -> None:
    with pytest.raises(ValueError, match="no tile grid"):
        anyres.unpadded_grid(MULTI_LAYOUT, 27)


@given(sizes)
def test_the_best_layout_is_the_models_own_where_the_bundle_has_its_grid(
    size: tuple[int, int],
) -> None:
    """Of layouts for every canvas, with the canvas's own aspect ratio."""
    layouts = [anyres.layout_for(*canvas, PINPOINTS, TILE) for canvas in PINPOINTS]
    best = anyres.best_layout(*size, layouts, TILE)
    assert (best.grid_rows * TILE, best.grid_cols * TILE) == select_best_resolution(size, PINPOINTS)


@given(st.tuples(st.integers(10, 4000), st.integers(10, 4000)))
def test_the_best_tiles_are_internvls_own_where_the_bundle_has_its_grid(
    size: tuple[int, int],
) -> None:
    sides = [(rows, cols) for cols in range(1, 13) for rows in range(1, 13) if rows * cols <= 12]
    layouts = [TileLayout("tiles", 1, rows, cols, rows * 9, cols * 9) for rows, cols in sides]
    best = anyres.best_layout(*size, layouts, 448)
    cols, rows = got_ocr2.get_optimal_tiled_canvas(size, (448, 448), 1, 12)
    assert (best.grid_rows, best.grid_cols) == (rows, cols)


def test_of_one_grid_the_nearest_aspect_ratio_is_best() -> None:
    square, wide = (anyres.layout_for(*size, PINPOINTS, TILE) for size in ((768, 768), (576, 768)))
    further = anyres.further_layout(wide)
    assert (further.name, further.kind) == ("single-768x576", "single")
    assert anyres.best_layout(700, 720, (square, further), TILE) is square
    assert anyres.best_layout(600, 800, (square, further), TILE) is further
