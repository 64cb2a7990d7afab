"""What is known before the export is known in seconds, whatever the size of the checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight, preprocessed_size
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.preprocess import RESIZE_EXACT, RESIZE_SHORTEST_EDGE, PreprocessSpec

# Processor time; the clock would count what other processes of the machine do.
LIMIT_S = 10


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5-7B in shape: headers as they are, and 14 GB of holes."""
    directory = tiny.llava(tmp_path_factory.mktemp("large") / "model")
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=tower.to_dict(),
        text_config=LlamaConfig(vocab_size=32064).to_dict(),
        image_token_index=259,
    )
    config.save_pretrained(directory)
    edge = {"height": 336, "width": 336}
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": edge}
    (directory / "preprocessor_config.json").write_text(
        json.dumps({**processor, "size": {"shortest_edge": 336}})
    )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    write_holes(directory / "model.safetensors", model)
    return directory


def write_holes(path: Path, model: torch.nn.Module) -> None:
    """A safetensors file of a model's shapes whose data take no room on the disk."""
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        shape = list(parameter.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def test_fourteen_gigabytes_are_checked_in_seconds(seven_billion: Path) -> None:
    assert (seven_billion / "model.safetensors").stat().st_size > 14e9
    start = time.process_time()
    preflight(Checkpoint.open(seven_billion))
    assert time.process_time() - start < LIMIT_S


def test_a_wrong_shape_among_them_is_found(seven_billion: Path) -> None:
    checkpoint = Checkpoint.open(seven_billion)
    checkpoint.config.text_config.intermediate_size -= 1
    with pytest.raises(LvlmError, match=r"_proj\.weight as \[4096, 11008\] and .* \[4096, 11007\]"):
        preflight(checkpoint)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (PreprocessSpec(center_crop=(30, 40)), (30, 40)),
        (PreprocessSpec(resize=RESIZE_EXACT, height=30, width=40), (30, 40)),
        (PreprocessSpec(resize=RESIZE_SHORTEST_EDGE, height=30), None),
        (
            PreprocessSpec(resize=RESIZE_SHORTEST_EDGE, height=30, pad_to_square=(0, 0, 0)),
            (30, 30),
        ),
        (PreprocessSpec(), None),
    ],
)
def test_the_size_that_preprocessing_gives(
    spec: PreprocessSpec, size: tuple[int, int] | None
) -> None:
    assert preprocessed_size(spec) == size
