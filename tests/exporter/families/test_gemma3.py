"""Gemma 3 against what transformers itself says of prompts, pixels, means of patches and windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache, Gemma3Config
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3MultiModalProjector,
    create_masks_for_vision_model,
)

import tiny
from helpers import edited
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.families.gemma3 import MeanProject
from lvlm_export.families.shared.shuffle import cell_order
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.chain.visible import first_in_window, seen_before, seen_in_prompt
from lvlm_runtime.errors import LvlmError, UsageError

PROCESSOR = "preprocessor_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.gemma3(tmp_path_factory.mktemp("gemma3") / "model")


@pytest.mark.parametrize("count", [1, 2])
def test_tokens_and_pixels_are_those_of_the_whole_processor(checkpoint: Path, count: int) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,)))
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    samples = [ParitySample((Image.fromarray(noise),) * count, "What is this?")]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL


def test_a_token_is_the_mean_of_its_cell() -> None:
    torch.manual_seed(0)
    config = Gemma3Config(
        vision_config={"hidden_size": 8, "image_size": 96, "patch_size": 8},
        text_config={"hidden_size": 16, "num_attention_heads": 2},
        mm_tokens_per_image=9,
    )
    projector = Gemma3MultiModalProjector(config)
    torch.nn.init.normal_(projector.mm_input_projection_weight)

    class Inner:
        multi_modal_projector = projector

        class vision_tower:  # noqa: N801  # as the model calls it
            post_layernorm = torch.nn.LayerNorm(8)

    hidden = torch.randn(2, 144, 8)
    expected = projector(Inner.vision_tower.post_layernorm(hidden))
    found = MeanProject(Inner())(cell_order(hidden, 12, 4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 5, 40])
def test_what_a_row_sees_is_what_transformers_masks_say(checkpoint: Path, window: int) -> None:
    text = Checkpoint.open(checkpoint).config.text_config
    text.sliding_window, text._attn_implementation = window, "eager"
    visual = np.array([[1, 2, 3, 4], [7, 8, 9, 10]])
    blocks = torch.full((1, 13), -1)
    blocks[0, visual[0]], blocks[0, visual[1]] = 0, 1

    def masks(new: int, cache: DynamicCache | None) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = create_masks_for_vision_model(
            text, torch.zeros(1, new, 8), None, cache, None, blocks if new > 1 else blocks[:, :0]
        )
        return found

    at, columns = np.arange(13), np.arange(13)
    whole = masks(13, None)
    seen = columns < seen_in_prompt("pictures", 13, visual)[:, None]
    assert (seen == (whole["full_attention"][0, 0] == 0).numpy()).all()
    near = columns >= first_in_window(at[:0], at, window)[:, None]
    assert ((seen & near) == (whole["sliding_attention"][0, 0] == 0).numpy()).all()
    # A token of the answer.
    first, last = first_in_window(at, np.array([13]), window), seen_before(13, 1)
    assert (int(first[0]), int(last[0])) == (max(0, 14 - window), 14)


def test_a_window_counts_positions_and_not_rows() -> None:
    positions = np.array([0, 1, 5, 9, 10, 11])
    assert first_in_window(positions[:4], positions[4:], 6).tolist() == [2, 3]
    with pytest.raises(AssertionError, match="rows stand in the order of their positions"):
        first_in_window(positions[::-1], positions[4:], 6)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("config.json", "mm_tokens_per_image"),
            10,
            "mm_tokens_per_image 10 does not fit a siglip_",
        ),
        (
            ("config.json", "mm_tokens_per_image"),
            25,
            "fit a siglip_vision_model of 12 x 12 patches",
        ),
        (
            ("config.json", "text_config", "final_logit_softcapping"),
            30.0,
            "final_logit_softcapping of text_config is 30.0, which Gemma 3 does not have",
        ),
        (
            ("config.json", "text_config", "sliding_window"),
            None,
            "and its sliding_window is not set",
        ),
        (
            ("config.json", "text_config", "rope_parameters", "full_attention", "rope_type"),
            "longrope",
            "rope_type 'longrope' of text_config is not supported|refused by transformers",
        ),
        (
            (PROCESSOR, "do_pan_and_scan"),
            True,
            "sets do_pan_and_scan to True, which may change pix",
        ),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(LvlmError, match=message):
        edited(checkpoint, tmp_path, *place, value=value).shape(None)


def test_another_text_model_is_refused(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    opened.config.text_config.model_type = "llama"
    with pytest.raises(LvlmError, match="'llama' is not supported in gemma3, gemma3_text is"):
        opened.shape(None)


def test_a_tokenizer_without_the_template_s_token_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    tokens = {"image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    place = "tokenizer_config.json", "extra_special_tokens"
    opened = edited(checkpoint, tmp_path, *place, value=tokens)
    with pytest.raises(LvlmError, match="names no boi_token, which its chat template writes for a"):
        _ = opened.encoder


def test_sizes_and_methods_that_do_not_fit_are_refused(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    with pytest.raises(UsageError, match="families with tiles; gemma3 resizes every picture"):
        opened.shape((40, 40))
    with pytest.raises(UsageError, match="smaller, and this model's tower joins patches in groups"):
        make_plan(opened, BuildOptions((0.5,), method="downsample"))
