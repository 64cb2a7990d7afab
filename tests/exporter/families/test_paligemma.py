"""PaliGemma against what transformers itself says of prompts, pixels, the start token and masks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers import GemmaConfig
from transformers.masking_utils import create_causal_mask

import tiny
from helpers import edited
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.tune.asking import Asker, AskOptions
from lvlm_runtime.chain.visible import seen_before, seen_in_prompt
from lvlm_runtime.errors import LvlmError, UsageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer puts a start token in front, as Gemma's does."""
    path = tiny.paligemma(tmp_path_factory.mktemp("paligemma") / "model")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_tokens_and_pixels_are_those_of_the_whole_processor(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,)))
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    picture = Image.fromarray(noise)
    samples = [ParitySample((picture,) * count, "caption en") for count in (1, 2)]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL
    assert opened.encoder.encode("caption", 1) == [259, 256, 66, 64, 79, 83, 72, 78, 77, 198]


def test_another_prompt_than_the_processors_is_found(checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("<image>{{ messages[0]['content'][-1].text }}")
    opened = Checkpoint.open(checkpoint)
    plan, encoder = make_plan(opened, BuildOptions((0.5,))), Checkpoint.open(other).encoder
    samples = [ParitySample((Image.new("RGB", (9, 9)),), "caption")]
    with pytest.raises(LvlmError, match="the prompt is not that of transformers' processor"):
        check_processor(opened, plan, encoder, samples)


def test_a_conversation_is_refused_in_words_of_the_template(checkpoint: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(LvlmError, match="this model takes one question and no conversation"):
        Checkpoint.open(checkpoint).encoder.encode_messages([*turns, turns[0]])


@pytest.mark.parametrize("attention", ["prefix", "pictures"])
def test_what_a_row_sees_is_what_transformers_masks_say(attention: str) -> None:
    config = GemmaConfig(**{**tiny.TEXT, "head_dim": 16}, attn_implementation="eager")
    visual = np.array([[1, 2, 3], [5, 6, 7]])
    blocks = torch.full((1, 9), 0 if attention == "prefix" else -1)
    if attention == "pictures":
        blocks[0, 1:4], blocks[0, 5:8] = 0, 1
    mask = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, 9, 8),
        attention_mask=None,
        past_key_values=None,
        block_sequence_ids=blocks,
    )
    seen = seen_in_prompt(attention, 9, visual)
    assert ((np.arange(9) < seen[:, None]) == (mask[0, 0] == 0).numpy()).all()
    assert seen_before(3, 2).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("text_config", "model_type"),
            "llama",
            "text model 'llama' is not supported in paligemma",
        ),
        (("text_config", "use_bidirectional_attention"), False, "text_config is False and PaliGem"),
        (
            ("vision_config", "model_type"),
            "clip_vision_model",
            "'clip_vision_model' is not support",
        ),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(LvlmError, match=message):
        edited(checkpoint, tmp_path, "config.json", *place, value=value).shape(None)


def test_sizes_and_tune_are_refused(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    with pytest.raises(UsageError, match="families with tiles; paligemma resizes every picture"):
        opened.shape((40, 40))
    with pytest.raises(UsageError, match="paligemma yet, whose decoder sees what stands behind"):
        Asker(opened, AskOptions(8, None, 0))
