"""Qwen2-VL and Qwen2.5-VL against what transformers itself says of sizes, pixels and positions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as official
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

import tiny
from helpers import edited
from lvlm_export.advise.subject import subject_of_preset
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.families.shared.qwen_vl import QwenBlocks, patches_of
from lvlm_export.graphs.reducers import make_reducer
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.reduction.tensors import window_bias
from lvlm_profiles.shapes.presets import load_preset
from lvlm_runtime.chain.vision import grid_rows
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.preprocess import layout_fit, preprocess
from lvlm_runtime.image.smart import smart_resize
from lvlm_runtime.prompt.sequence import Origins, position_rows

SIZE = (40, 56)  # 5 x 7 tokens of 2 x 2 patches of 4 pixels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen_vl(tmp_path_factory.mktemp("qwen") / "model")


def test_sizes_are_those_of_transformers() -> None:
    generator = np.random.default_rng(3)
    for height, width in generator.integers(10, 1800, (300, 2)).tolist():
        given = height, width, 28, 56 * 56, 28 * 28 * 1280
        assert smart_resize(*given) == official.smart_resize(*given)
    with pytest.raises(LvlmError, match=r"a picture of 4x900 pixels .* is too narrow .*; crop it"):
        smart_resize(4, 900, 28, 56 * 56, 28 * 28 * 1280)


def test_pixels_are_those_of_transformers_processor(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    shape = opened.shape(SIZE)
    processor = official.Qwen2VLImageProcessorPil(**json_of(checkpoint, "preprocessor_config.json"))
    generator = np.random.default_rng(5)
    for height, width in ((40, 56), (41, 54), (37, 58)):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = processor([picture], return_tensors="np")
        ours = preprocess([picture], shape.preprocess, shape.layouts[0])
        assert not ours.fits[0].letterboxed
        assert theirs["image_grid_thw"].tolist() == [[1, 10, 14]]
        patches = patches_of(torch.from_numpy(ours.pixel_values), 4, 2).numpy()
        np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-6)


def test_a_picture_of_another_shape_is_letterboxed(checkpoint: Path) -> None:
    shape = Checkpoint.open(checkpoint).shape(SIZE)
    fit = layout_fit(100, 50, shape.preprocess, shape.layouts[0])
    assert (fit.letterboxed, fit.padded_height, fit.padded_width) == (True, 100, 140)
    picture = Image.new("RGB", (50, 100), (255, 255, 255))
    pixels = preprocess([picture], shape.preprocess, shape.layouts[0]).pixel_values
    assert pixels.shape == (1, 3, *SIZE)
    assert (pixels[0, 0, 20, [0, 28, 55]] > 0).tolist() == [False, True, False]


def test_tokens_and_pixels_are_those_of_the_whole_processor(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,), image_size=SIZE))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8))
    samples = [ParitySample((picture, picture), "What is this?")]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL


def test_positions_are_those_of_get_rope_index(checkpoint: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint).model
    runs, grid = [3, 2, 4], (5, 7)
    kinds = [0] * 3 + [1] * 35 + [0] * 2 + [1] * 35 + [0] * 4
    wanted, delta = model.get_rope_index(
        torch.zeros((1, len(kinds)), dtype=torch.int64),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor([[1, 10, 14]] * 2),
    )
    ids, following = position_rows(runs, Origins.whole(2, 35), 3, grid)
    assert ids.tolist() == wanted[:, 0].tolist()
    assert following == len(kinds) + int(delta)
    kept = Origins.whole(2, 35).keep(np.array([[0, 8, 34], [1, 2, 3]]))
    ids, after = position_rows(runs, kept, 3, grid)
    assert ids[:, 3:6].tolist() == wanted[:, 0, [3, 11, 37]].tolist()
    assert after == following
    ids, after = position_rows([4], None, 3, None)
    assert (ids.tolist(), after) == ([[0, 1, 2, 3]] * 3, 4)


def test_windows_are_those_of_transformers() -> None:
    grid = torch.from_numpy(grid_rows(1, (5, 7)))
    ours = window_bias(grid, 2, 4, torch.float32)[0, 0] == 0
    order, bounds = get_vision_window_index(torch.tensor([[1, 10, 14]]), 2, 16, 4)
    window = torch.zeros(35 * 4, dtype=torch.int64)
    patches = (order[:, None] * 4 + torch.arange(4)).flatten()
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        window[patches[first:last]] = number
    assert torch.equal(ours, window[:, None] == window[None])


def test_patches_turn_with_their_rows_and_columns(checkpoint: Path) -> None:
    tower = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint).model.visual
    places = get_vision_position_ids(torch.tensor([[1, 10, 14]]), 2)
    cos, sin = QwenBlocks(tower).rows(torch.from_numpy(grid_rows(1, (5, 7))))
    wanted = tower.rotary_pos_emb(cos, places)
    assert torch.equal(cos[0], wanted[0])
    assert torch.equal(sin[0], wanted[1])


def json_of(directory: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / name).read_text())
    content.pop("image_processor_type", None)
    return content


PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("config.json", "vision_config", "in_channels"),
            4,
            "in_channels 4 and 2 heads .* are 2, 3",
        ),
        (
            ("config.json", "text_config", "rope_parameters", "mrope_section"),
            [1, 1],
            r"mrope_section of text_config is \[1, 1\], parts of half a head of 12",
        ),
        ((PROCESSOR, "merge_size"), 3, r"merge_size \(4, 2, 3\) and vision_config \(4, 2, 2\)"),
        ((PROCESSOR, "min_pixels"), "few", "fewest and most pixels are 'few' and 2560, whole"),
        ((PROCESSOR, "do_resize"), False, "has do_resize off or do_center_crop on"),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(LvlmError, match=message):
        edited(checkpoint, tmp_path, *place, value=value).shape(SIZE)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("downsample", "makes pictures smaller, and this model's tower asks every token for its"),
        ("prumerge_plus", "appends a token without a place, and this model's tower asks every"),
        ("image_text", "needs the CLS token"),
    ],
)
def test_methods_that_do_not_fit_say_why(checkpoint: Path, method: str, message: str) -> None:
    opened = Checkpoint.open(checkpoint)
    with pytest.raises(UsageError, match=message):
        make_plan(opened, BuildOptions((0.5,), method=method, image_size=SIZE))


@pytest.mark.parametrize("method", ["local", "anchors", "checkerboard"])
def test_methods_that_measure_distances_know_the_pictures_columns(
    checkpoint: Path, method: str
) -> None:
    plan = make_plan(
        Checkpoint.open(checkpoint), BuildOptions((0.5,), method=method, image_size=SIZE)
    )
    count = plan.budgets[0].vision[0]
    assert make_reducer(plan, count).shape.grid == plan.shape.vision.grid == (5, 7)


def test_presets_count_a_pictures_tokens_by_its_size() -> None:
    for name, size, tokens in (
        ("qwen2.5-vl-3b", (720, 1280), 26 * 46),
        ("qwen2.5-vl-7b", None, 16 * 16),
        ("qwen2-vl-2b", (20, 20), 2 * 2),
        ("qwen3-vl-4b", (720, 1280), 22 * 40),
    ):
        subject = subject_of_preset(load_preset(name), size)
        assert subject.geometry.vision_tokens == tokens
        assert subject.dims.vision.tokens == 4 * tokens
        assert subject.geometry.visual_tokens(subject.geometry.layouts[0], 7) == 7
