"""Pixel values against transformers' PIL image processors: equal to the last bit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image as load_image_of_transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lvlm_profiles import records
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, MULTI_LAYOUT, TileLayout
from lvlm_runtime.image.preprocess import (
    PreprocessSpec,
    layout_fit,
    load_image,
    pixel_values,
    preprocess,
)

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
TILE, SIDE = 32, 9
PINPOINTS = tuple((TILE * rows, TILE * cols) for rows in range(1, 5) for cols in range(1, 5))

CLIP = PreprocessSpec(
    resize="shortest_edge",
    height=TILE,
    center_crop=(TILE, TILE),
    rescale_factor=1 / 255,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
SIGLIP = PreprocessSpec(
    resize="exact", height=TILE, width=TILE, rescale_factor=1 / 255, mean=HALF, std=HALF
)
LLAVA = replace(CLIP, pad_to_square=(122, 116, 104))
ONEVISION = replace(
    SIGLIP, pad_to_square=(127, 127, 127), grid_pinpoints=PINPOINTS, feature_side=SIDE
)

ONE_VIEW = {
    "clip": (CLIP, CLIPImageProcessorPil(size=TILE, crop_size=TILE)),
    "clip_small_crop": (
        replace(CLIP, height=20, center_crop=(33, 24)),
        CLIPImageProcessorPil(size=20, crop_size=[33, 24]),
    ),
    "siglip": (SIGLIP, SiglipImageProcessorPil(size=[TILE, TILE])),
    "llava": (LLAVA, LlavaImageProcessorPil(size=TILE, crop_size=TILE, do_pad=True)),
}
ONEVISION_PROCESSOR = LlavaOnevisionImageProcessorPil(
    size=[TILE, TILE],
    image_mean=list(HALF),
    image_std=list(HALF),
    image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
)

sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * 999 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )
    return Image.fromarray(noise)


def single(height: int, width: int) -> TileLayout:
    return anyres.layout_for(height, width, PINPOINTS, TILE)


@pytest.mark.parametrize("kind", ONE_VIEW)
@settings(max_examples=40, deadline=None)
@given(size=sizes)
def test_one_view_is_the_processors(kind: str, size: tuple[int, int]) -> None:
    spec, processor = ONE_VIEW[kind]
    expected = processor(picture(*size), return_tensors="np").pixel_values
    ours = pixel_values([picture(*size)], spec, IMAGE_LAYOUT)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, expected)


@settings(max_examples=60, deadline=None)
@given(size=sizes)
def test_tiles_of_a_single_picture_are_the_processors(size: tuple[int, int]) -> None:
    expected = ONEVISION_PROCESSOR(picture(*size), return_tensors="np").pixel_values[0]
    done = preprocess([picture(*size)], ONEVISION, single(*size))
    assert not done.fits[0].letterboxed
    np.testing.assert_array_equal(done.pixel_values, expected)


@settings(max_examples=30, deadline=None)
@given(pair=st.tuples(sizes, sizes))
def test_views_of_several_pictures_are_the_processors(pair: list[tuple[int, int]]) -> None:
    images = [picture(*size) for size in pair]
    expected = ONEVISION_PROCESSOR([images], return_tensors="np").pixel_values[:, 0]
    done = preprocess(images, ONEVISION, MULTI_LAYOUT)
    np.testing.assert_array_equal(done.pixel_values, expected)
    assert [fit.letterboxed for fit in done.fits] == [False, False]


@pytest.mark.parametrize("name", ["chelsea.png", "coins.png", "rocket.jpg"])
def test_photographs_at_the_models_real_sizes(name: str) -> None:
    path = PHOTOS / name
    image, theirs = load_image(path), load_image_of_transformers(str(path))
    clip = replace(CLIP, height=336, center_crop=(336, 336))
    np.testing.assert_array_equal(
        pixel_values([image], clip, IMAGE_LAYOUT),
        CLIPImageProcessorPil(size=336, crop_size=336)(theirs, return_tensors="np").pixel_values,
    )
    processor = LlavaOnevisionImageProcessorPil(image_mean=list(HALF), image_std=list(HALF))
    pinpoints = tuple((h, w) for h, w in processor.image_grid_pinpoints)
    spec = replace(ONEVISION, height=384, width=384, grid_pinpoints=pinpoints, feature_side=27)
    layout = anyres.layout_for(image.height, image.width, pinpoints, 384)
    np.testing.assert_array_equal(
        pixel_values([image], spec, layout),
        processor(theirs, return_tensors="np").pixel_values[0],
    )


def test_another_shape_is_letterboxed_and_said_so() -> None:
    layout = single(60, 80)
    wide = picture(40, 80)
    by_hand = Image.new("RGB", (80, 60))
    by_hand.paste(wide, (0, 10))
    done = preprocess([wide], ONEVISION, layout)
    fit = done.fits[0]
    assert fit.letterboxed
    assert (fit.image_height, fit.image_width) == (40, 80)
    assert (fit.padded_height, fit.padded_width) == (60, 80)
    expected = ONEVISION_PROCESSOR(by_hand, return_tensors="np").pixel_values[0]
    np.testing.assert_array_equal(done.pixel_values, expected)


@settings(max_examples=40, deadline=None)
@given(size=sizes, nominal=st.sampled_from([(60, 80), (32, 32), (128, 40), (33, 120)]))
def test_every_picture_fits_every_layout(size: tuple[int, int], nominal: tuple[int, int]) -> None:
    layout = single(*nominal)
    done = preprocess([picture(*size)], ONEVISION, layout)
    assert done.pixel_values.shape == (layout.tiles, 3, TILE, TILE)
    fit = done.fits[0]
    assert fit.letterboxed != anyres.same_layout(single(*size), layout, SIDE)
    assert fit.padded_height >= size[0]
    assert fit.padded_width >= size[1]
    if fit.letterboxed:  # the layout's aspect ratio, to the pixel
        assert abs(fit.padded_width - fit.padded_height * nominal[1] / nominal[0]) <= max(
            1, nominal[1] / nominal[0]
        )


def test_a_larger_copy_of_the_same_shape_takes_the_grid_of_the_layout() -> None:
    fit = layout_fit(600, 800, ONEVISION, single(60, 80))
    assert fit.letterboxed  # its own grid would be 3 x 4
    assert (fit.padded_height, fit.padded_width) == (600, 800)


def test_a_very_narrow_picture_is_letterboxed() -> None:
    done = preprocess([picture(1, 400)], ONEVISION, single(60, 80))
    assert done.fits[0].letterboxed
    assert done.fits[0].padded_height == 300


def test_a_spec_survives_json() -> None:
    content = json.loads(json.dumps(asdict(ONEVISION)))
    assert records.read(PreprocessSpec, content, "manifest.json", "build again") == ONEVISION


@pytest.mark.parametrize("spec", [LLAVA, CLIP])
def test_padding_and_resizing_do_not_explode(spec: PreprocessSpec) -> None:
    narrow = Image.new("RGB", (10_000_000, 1))
    with pytest.raises(LvlmError, match=r"1x10000000 pixels has to become .*; crop it first"):
        pixel_values([narrow], spec, IMAGE_LAYOUT)


def test_letterboxing_does_not_explode() -> None:
    with pytest.raises(LvlmError, match=r"has to become .*, 256000000 pixels are allowed"):
        pixel_values([Image.new("RGB", (10_000_000, 1))], ONEVISION, single(60, 80))


def test_no_picture_is_refused() -> None:
    with pytest.raises(LvlmError, match="no picture was given; give at least one"):
        pixel_values([], CLIP, IMAGE_LAYOUT)


def test_two_pictures_for_a_single_layout_are_refused() -> None:
    with pytest.raises(LvlmError, match="2 pictures were given, this bundle's layout takes exact"):
        pixel_values([picture(9, 9)] * 2, ONEVISION, single(60, 80))


def test_pictures_of_two_sizes_without_resizing_are_refused() -> None:
    with pytest.raises(LvlmError, match="come out in 2 sizes, one is needed"):
        pixel_values([picture(9, 9), picture(9, 8)], PreprocessSpec(), IMAGE_LAYOUT)


def test_an_unknown_key_of_a_spec_is_refused() -> None:
    content = {**asdict(ONEVISION), "colour": 1}
    with pytest.raises(LvlmError, match=r"the known entries, got unknown 'colour'; build again"):
        records.read(PreprocessSpec, content, "manifest.json", "build again")


@pytest.mark.parametrize(
    ("spec", "layout", "message"),
    [
        (CLIP, MULTI_LAYOUT, "does not belong to"),
        (ONEVISION, IMAGE_LAYOUT, "does not belong to"),
        (replace(ONEVISION, feature_side=None), single(60, 80), "needs grid_pinpoints, height"),
        (replace(CLIP, resize="longest_edge"), IMAGE_LAYOUT, "resize 'longest_edge'"),
    ],
)
def test_a_spec_of_another_model_is_a_mistake(
    spec: PreprocessSpec, layout: TileLayout, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pixel_values([picture(9, 9)], spec, layout)
