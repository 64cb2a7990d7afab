"""Pixel values against transformers' PIL image processors: equal to the last bit."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
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

import pictures
from lvlm_profiles import records
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres, memory
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, MULTI_LAYOUT, TileLayout
from lvlm_runtime.image.preprocess import (
    PreprocessSpec,
    layout_fit,
    load_image,
    needed_bytes,
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


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        # Gigabytes of filters, columns that are resized across first, and a square of the longer edge.
        *((spec, (1, 64_000_000)) for spec in (CLIP, SIGLIP, LLAVA)),
        *((spec, (64_000_000, 1)) for spec in (CLIP, SIGLIP, LLAVA)),
        (LLAVA, (20, 40_000)),
        (replace(SIGLIP, height=300_000, width=300_000), (20, 20)),
        (PreprocessSpec(center_crop=(300_000, 300_000)), (20, 20)),
    ],
)
def test_what_a_picture_will_take_is_known_before_it_is_decoded(
    spec: PreprocessSpec, size: tuple[int, int]
) -> None:
    """Refused from the header alone: the file has no pixels."""
    message = r"a picture of \d+x\d+ pixels \(height x width\) takes .* GB of memory to prepare"
    with pytest.raises(LvlmError, match=message + ".*2 GB are allowed"):
        pixel_values([header(*size)], spec, IMAGE_LAYOUT)


def header(height: int, width: int) -> bytes:
    """A PNG of a known size and without pixels."""
    content = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pictures.chunk(b"IHDR", content) + pictures.chunk(b"IDAT", b"")


def test_letterboxing_does_not_explode() -> None:
    with pytest.raises(LvlmError, match=r"takes .* GB of memory to prepare for this model, 2 GB"):
        pixel_values([Image.new("RGB", (10_000_000, 1))], ONEVISION, single(60, 80))


@pytest.mark.parametrize("spec", [CLIP, SIGLIP, LLAVA], ids=["clip", "siglip", "llava"])
@pytest.mark.parametrize("size", [(6936, 9248), (9000, 12_000)])
def test_pictures_of_telephones_fit(spec: PreprocessSpec, size: tuple[int, int]) -> None:
    for height, width in (size, size[::-1]):
        assert needed_bytes(height, width, spec, IMAGE_LAYOUT)[0] < memory.MAX_BYTES


def test_many_pictures_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _, each = needed_bytes(40, 60, SIGLIP, IMAGE_LAYOUT)
    monkeypatch.setattr(memory, "MAX_BYTES", 5 * each)
    pixel_values([picture(40, 60)] * 5, SIGLIP, IMAGE_LAYOUT)
    with pytest.raises(LvlmError, match="what the model sees of 6 pictures takes"):
        pixel_values([picture(40, 60)] * 6, SIGLIP, IMAGE_LAYOUT)


MEASURE = """
import sys
from test_preprocess import *
spec, layout, size = eval(sys.argv[1])
image = Image.new("RGB", size[::-1], (9, 99, 200))
def peak():
    [line] = [each for each in open("/proc/self/status") if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
pixel_values([Image.new("RGB", (50, 40))], spec, layout if layout.name != "single" else single(40, 50))
open("/proc/self/clear_refs", "w").write("5")
before = peak()
pixel_values([image], spec, layout)
held = memory.stored_bytes(*size)
print((peak() - before + held) / needed_bytes(*size, spec, layout)[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *("CLIP, IMAGE_LAYOUT, (4000, 3000)", "SIGLIP, IMAGE_LAYOUT, (3000, 4000)"),
        *("LLAVA, IMAGE_LAYOUT, (6000, 600)", "SIGLIP, IMAGE_LAYOUT, (500_000, 1)"),
        *("SIGLIP, IMAGE_LAYOUT, (1, 500_000)", "ONEVISION, single(60, 80), (300, 9000)"),
        "ONEVISION, single(3000, 4000), (3000, 4000)",
    ],
)
def test_a_picture_takes_no_more_than_was_counted(case: str) -> None:
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, case],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.2 < float(done.stdout) <= 1.02


def test_no_picture_is_refused() -> None:
    with pytest.raises(LvlmError, match="no picture was given; give at least one"):
        pixel_values([], CLIP, IMAGE_LAYOUT)


def test_two_pictures_for_a_single_layout_are_refused() -> None:
    with pytest.raises(LvlmError, match="2 pictures were given, this model's tiles are laid"):
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
