"""Settings as transformers writes them, against what its processors take from them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_profiles import records
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, MULTI_LAYOUT
from lvlm_runtime.image.preprocess import PreprocessSpec, pixel_values

CLASSES = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "LlavaOnevisionImageProcessor": LlavaOnevisionImageProcessorPil,
}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"size": 40},
    {"size": {"shortest_edge": 40}, "crop_size": 24},
    {"size": {"height": 24, "width": 24}},
    {"size": [24, 24]},
    {"size": 40, "default_to_square": True, "do_center_crop": None},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
    {"resample": 2, "do_convert_rgb": True, "device": None, "input_data_format": None},
    {"do_pad": None, "size": {"height": 24, "width": 24}},
    {"do_normalize": None, "do_rescale": None, "size": {"height": 24, "width": 24}},
]


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("options", OPTIONS, ids=json.dumps)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_a_spec_does_what_the_processor_does(
    kind: str, options: dict[str, Any], suffix: str
) -> None:
    processor = CLASSES[kind](**options)
    spec = preprocess_spec({"image_processor_type": kind + suffix, **options})
    images = [picture(50, 70), picture(50, 70)]
    if kind.startswith("LlavaOnevision"):
        expected = processor([images], return_tensors="np").pixel_values[:, 0]
        ours = pixel_values(images, spec, MULTI_LAYOUT)
    else:
        expected = processor(images, return_tensors="np").pixel_values
        ours = pixel_values(images, spec, IMAGE_LAYOUT)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_files_of_transformers_5_are_read(kind: str) -> None:
    written = json.loads(CLASSES[kind]().to_json_string())
    spec = preprocess_spec(written)
    assert spec == preprocess_spec({"image_processor": written, "patch_size": 14})
    assert spec == preprocess_spec({"image_processor_type": kind})
    content = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert records.read(PreprocessSpec, content, "manifest.json", "build again") == spec


def test_files_of_transformers_4_are_read() -> None:
    spec = preprocess_spec(
        {
            "_valid_processor_keys": ["images", "do_resize", "size"],
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "size": {"shortest_edge": 336},
        }
    )
    assert (spec.resize, spec.height, spec.center_crop) == ("shortest_edge", 336, (336, 336))


def test_empty_keys_of_a_size_are_no_keys() -> None:
    kind = {"image_processor_type": "SiglipImageProcessor"}
    assert preprocess_spec({**kind, "size": {"height": 9, "width": 9, "shortest_edge": None}}) == (
        preprocess_spec({**kind, "size": {"height": 9, "width": 9}})
    )


def test_padding_of_a_llava_processor_is_read() -> None:
    config = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    assert preprocess_spec(config).pad_to_square == (122, 116, 104)


def test_tile_geometry_of_onevision_is_read() -> None:
    spec = preprocess_spec({"image_processor_type": "LlavaOnevisionImageProcessorFast"}, 27)
    assert spec.grid_pinpoints is not None
    assert spec.grid_pinpoints[:2] == ((384, 384), (384, 768))
    assert len(spec.grid_pinpoints) == 36
    assert spec.feature_side == 27


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "image_processor_type of this checkpoint is None; known are CLIPImageProcessor"),
        ({"image_processor_type": "ViTImageProcessor"}, "is 'ViTImageProcessor'; known are"),
        ({"image_processor_type": "CLIP"}, "is 'CLIP'; known are"),
        (
            {"image_processor_type": "CLIPImageProcessor", "crop_pct": 0.9},
            "CLIP of this checkpoint sets crop_pct to 0.9, which may change pixels",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_pad": True},
            "CLIP of this checkpoint has do_pad on",
        ),
        (
            {
                "image_processor_type": "SiglipImageProcessor",
                "size": {"shortest_edge": 3, "longest_edge": 9},
            },
            "size of {'shortest_edge': 3, 'longest_edge': 9} .* not supported",
        ),
        ({"image_processor_type": "SiglipImageProcessor", "size": [0, 4]}, "size of .* whole"),
        (
            {"image_processor_type": "LlavaOnevisionImageProcessor", "do_center_crop": True},
            "tiles need do_resize on, do_center_crop off .* has do_center_crop True",
        ),
        (
            {"image_processor_type": "LlavaOnevisionImageProcessor", "size": [24, 48]},
            r"and a square size; this checkpoint has .* size \[24, 48\]",
        ),
        (
            {"image_processor_type": "LlavaOnevisionImageProcessor", "do_resize": False},
            "need do_resize on",
        ),
        (
            {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": []},
            r"image_grid_pinpoints is \[\]",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "image_std": [1, 1]},
            r"image_std of this checkpoint's image processor is \[1, 1\], one number or three",
        ),
        (
            {"image_processor_type": "LlavaImageProcessor", "image_mean": None, "do_pad": True},
            "image_mean of this checkpoint's image processor is None, one number or three",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "rescale_factor": None},
            "rescale_factor of this checkpoint's image processor is None, a number is needed",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "resample": "bicubic"},
            "resample of this checkpoint's image processor is 'bicubic', allowed is",
        ),
    ],
)
def test_settings_that_are_not_supported_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(LvlmError, match=message):
        preprocess_spec(config)
