"""InternVL against what transformers itself says of grids, pixels and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as official

import tiny
from helpers import edited
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.anyres import nearest_grid
from lvlm_runtime.image.preprocess import layout_fit, preprocess
from lvlm_runtime.prompt.sequence import Origins, position_ids

SIZE = (60, 140)  # one row of two tiles of 48 pixels, 3 x 3 tokens each
PROCESSOR = "preprocessor_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.internvl(tmp_path_factory.mktemp("internvl") / "model")


def test_grids_are_those_of_transformers() -> None:
    generator = np.random.default_rng(3)
    sizes = [*generator.integers(10, 1800, (300, 2)).tolist(), [448, 448], [896, 896], [448, 896]]
    for height, width in sizes:
        for fewest, most in ((1, 12), (2, 6)):
            cols, rows = official.get_optimal_tiled_canvas(
                (height, width), (448, 448), fewest, most
            )
            assert nearest_grid(height, width, 448, fewest, most) == (rows, cols)
    with pytest.raises(LvlmError, match="a picture of 0x5 pixels has no layout; give one of at"):
        nearest_grid(0, 5, 448, 1, 12)


@pytest.mark.parametrize(
    ("size", "grid"), [((60, 140), (1, 2)), ((96, 97), (2, 2)), ((9, 9), None)]
)
def test_pixels_are_those_of_transformers_processor(
    checkpoint: Path, size: tuple[int, int], grid: tuple[int, int] | None
) -> None:
    shape = Checkpoint.open(checkpoint).shape(size)
    settings = json.loads((checkpoint / PROCESSOR).read_text())
    settings.pop("image_processor_type")
    processor = official.GotOcr2ImageProcessorPil(**settings, crop_to_patches=True)
    pixels = np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    theirs = processor([picture], return_tensors="np")
    ours = preprocess([picture], shape.preprocess, shape.layouts[0])
    assert not ours.fits[0].letterboxed
    layout = shape.layouts[0]
    assert (layout.grid_rows, layout.grid_cols) == (grid or (1, 1))
    # The whole picture stands behind the tiles, unless it is the only one.
    assert layout.tiles == (grid[0] * grid[1] + 1 if grid else 1) == len(theirs["pixel_values"])
    np.testing.assert_allclose(ours.pixel_values, theirs["pixel_values"], atol=1e-6)


def test_a_picture_of_another_grid_is_letterboxed(checkpoint: Path) -> None:
    shape = Checkpoint.open(checkpoint).shape(SIZE)
    fit = layout_fit(60, 60, shape.preprocess, shape.layouts[0])
    assert (fit.letterboxed, fit.padded_height, fit.padded_width) == (True, 60, 140)
    picture = Image.new("RGB", (60, 60), (255, 255, 255))
    pixels = preprocess([picture], shape.preprocess, shape.layouts[0]).pixel_values
    assert (pixels[:2, 0, 24, [0, 47]] > 0).tolist() == [[False, True], [True, False]]


def test_tokens_and_pixels_are_those_of_the_whole_processor(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,), image_size=SIZE))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8))
    samples = [ParitySample((picture, picture), "What is this?")]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL
    (checkpoint / "processor_config.json").rename(checkpoint / "put_away")
    settings = json.loads((checkpoint / "put_away").read_text()) | {"image_seq_length": 8}
    try:
        (checkpoint / "processor_config.json").write_text(json.dumps(settings))
        with pytest.raises(
            LvlmError, match=r"makes 48 image tokens where the model gives 54; .* 8"
        ):
            check_processor(Checkpoint.open(checkpoint), plan, opened.encoder, samples)
    finally:
        (checkpoint / "put_away").rename(checkpoint / "processor_config.json")


def test_a_token_that_stays_keeps_its_position() -> None:
    kept = Origins.whole(6, 9).keep(np.array([[0, 4], [1, 8], [2, 3]] * 2)).joined(3)
    assert (kept.offsets.tolist(), kept.span) == ([[0, 4, 10, 17, 20, 21]] * 2, 27)
    ids, following = position_ids([2, 1, 1], kept)
    assert ids.tolist() == [0, 1, 2, 6, 12, 19, 22, 23, 29, 30, 34, 40, 47, 50, 51, 57]
    assert following == 4 + 2 * 27


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("config.json", "downsample_ratio"), 0.7, "downsample_ratio 0.7 is not supported, 1 div"),
        (("config.json", "vision_feature_layer"), -2, r"are \(-2, 'default'\), supported are -1"),
        (("config.json", "vision_config", "patch_size"), [16, 16], "whole cells of 2 x 2 patches"),
        (("config.json", "vision_config", "num_attention_heads"), 5, "5 heads for a width of 32"),
        ((PROCESSOR, "max_patches"), 0, "processor are 1 and 0, whole numbers from 1 to 256"),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(LvlmError, match=message):
        edited(checkpoint, tmp_path, *place, value=value).shape(SIZE)


def test_methods_that_do_not_fit_say_why(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    with pytest.raises(UsageError, match="smaller, and this model's tower joins patches in groups"):
        make_plan(opened, BuildOptions((0.5,), method="downsample", image_size=SIZE))
