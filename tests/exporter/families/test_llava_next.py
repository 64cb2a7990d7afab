"""LLaVA-NeXT against what transformers itself says of tiles, packing and prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextModel

import tiny
from helpers import edited
from lvlm_export.advise.subject import subject_of_preset
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.families.shared.anyres import SinglePacker
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_profiles.shapes.presets import load_preset
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.anyres import layout_for
from lvlm_runtime.image.preprocess import preprocess

PUBLISHED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
PROCESSOR = "preprocessor_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava_next(tmp_path_factory.mktemp("llava_next") / "model")


@pytest.mark.parametrize("size", [(77, 140), (140, 60), (48, 48), (300, 100)])
def test_tokens_and_pixels_are_those_of_the_whole_processor(
    checkpoint: Path, size: tuple[int, int]
) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,), image_size=size))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    samples = [ParitySample((picture,), "What is this?")]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 300), (333, 1001), (50, 50)])
def test_tiles_are_packed_as_the_model_packs_them(size: tuple[int, int]) -> None:
    layout = layout_for(*size, PUBLISHED, 336)
    generator = torch.Generator().manual_seed(4)
    features = torch.rand(layout.tiles, 576, 3, generator=generator)
    newline = torch.nn.Parameter(torch.tensor([2.0, 3.0, 4.0]))
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=PUBLISHED
    )
    [expected], _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [features], [size], "default", newline
    )
    packed = SinglePacker(newline, layout, 576, None)(features)
    assert isinstance(packed, torch.Tensor)
    torch.testing.assert_close(packed[0], expected, rtol=0, atol=0)
    subject = subject_of_preset(load_preset("llava-next-mistral-7b"), size)
    assert subject.geometry.layouts == (layout,)
    assert subject.geometry.visual_tokens(layout, 576) == len(expected)


def test_a_request_has_one_picture(checkpoint: Path) -> None:
    shape = Checkpoint.open(checkpoint).shape((77, 140))
    pictures = [Image.new("RGB", (9, 9))] * 2
    with pytest.raises(LvlmError, match="2 pictures were given, this model's tiles are laid out"):
        preprocess(pictures, shape.preprocess, shape.layouts[0])


def test_a_view_is_a_square_of_the_tile_whatever_the_file_calls_it() -> None:
    kind = {"image_processor_type": "LlavaNextImageProcessor"}
    assert preprocess_spec({**kind, "size": {"shortest_edge": 336}, "crop_size": 336}) == (
        preprocess_spec({**kind, "size": {"height": 336, "width": 336}, "crop_size": None})
    )
    with pytest.raises(LvlmError, match="tiles need do_resize on, no crop of another size and a"):
        preprocess_spec({**kind, "size": 336, "crop_size": 224})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("config.json", "image_grid_pinpoints"), [], "image_grid_pinpoints of config.json is em"),
        (("config.json", "mm_projector_type"), "tokenpacker", "tokenpacker is not supported with"),
        ((PROCESSOR, "do_resize"), False, "LlavaNext tiles need do_resize on"),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(LvlmError, match=message):
        edited(checkpoint, tmp_path, *place, value=value).shape((77, 140))


def test_methods_that_do_not_fit_say_why(checkpoint: Path) -> None:
    options = BuildOptions((0.5,), method="prumerge", image_size=(77, 140))
    with pytest.raises(UsageError, match="appends a token that has no place in a tile's grid"):
        make_plan(Checkpoint.open(checkpoint), options)
