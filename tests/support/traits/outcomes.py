"""What must come out of a trait: refused in one line, or what transformers itself reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from command_line import error_line, typed
from lvlm_export.check.reference_io import quiet_transformers
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight
from lvlm_export.checkpoint.processing import prompt_files
from lvlm_runtime.image.anyres import IMAGE_LAYOUT
from lvlm_runtime.image.preprocess import preprocess
from lvlm_runtime.prompt.encoder import PromptEncoder

TEXT_IDS = [[256, *range(40, 60), 257]]


def refused(match: str) -> Callable[[Path], None]:
    """``build`` says one line that matches, short and before any graph."""

    def check(directory: Path) -> None:
        output = directory.with_name("bundle")
        line = error_line(typed("build", "--ratio", "0.5", "--model", directory, "-o", output), 1)
        assert re.search(match, line), line
        assert len(line) < 500, line
        assert not list(directory.parent.glob("bundle*"))

    return check


def same_weights(directory: Path) -> None:
    """Every parameter is what ``from_pretrained`` loads, and so are the logits of a text."""
    model = load_theirs(directory)
    checkpoint = Checkpoint.open(directory)
    preflight(checkpoint)
    theirs = model(input_ids=torch.tensor(TEXT_IDS)).logits
    ours = loaded(checkpoint)(input_ids=torch.tensor(TEXT_IDS)).logits
    assert torch.equal(ours, theirs)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in parameters.items():
        assert torch.equal(checkpoint.tensor(name).float(), tensor), name


def loaded(checkpoint: Checkpoint) -> Any:
    """The model that is exported, with the weights that a bundle would hold."""
    model = checkpoint.skeleton(torch.float32, "eager")
    for name, parameter in model.named_parameters():
        parameter.data = checkpoint.tensor(name).float()
    return model


def context_of(positions: int) -> Callable[[Path], None]:
    """The model is used up to that length, which is where transformers' own window begins to cut."""

    def check(directory: Path) -> None:
        checkpoint = Checkpoint.open(directory)
        preflight(checkpoint)
        assert checkpoint.shape(None).text.context_length == positions
        model, whole = load_theirs(directory), load_theirs(directory, window=False)
        for length in (min(positions, 100), 100):
            ids = torch.arange(length)[None] % 200
            same = torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
            assert same == (length <= positions)

    return check


def load_theirs(directory: Path, window: bool = True) -> Any:
    """The model as transformers loads it in float32, or without its attention windows."""
    config = AutoConfig.from_pretrained(directory)
    if not window:
        config.text_config.sliding_window = None
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    options = {"dtype": torch.float32, "attn_implementation": "eager", "config": config}
    with quiet_transformers():
        model = AutoModelForImageTextToText.from_pretrained(directory, **options)
    return model.eval().requires_grad_(False)


def same_frequencies(directory: Path) -> None:
    """The rotary part that is exported gives transformers' numbers at every place of the context."""
    checkpoint = Checkpoint.open(directory)
    preflight(checkpoint)
    context = checkpoint.shape(None).text.context_length
    theirs = load_theirs(directory)
    ours = checkpoint.family.parts(checkpoint.skeleton(torch.float32, "eager")).rotary
    hidden, places = torch.zeros(1, 1, 48), torch.arange(context)[None]
    for length in (1, 64, context):
        part = places[:, :length]
        expected = theirs.model.language_model.rotary_emb(hidden, part)
        for mine, their in zip(ours(hidden, part), expected, strict=True):
            assert torch.equal(mine, their)


def built(directory: Path) -> None:
    """``build`` publishes a bundle, so the chain agreed with PyTorch; for rows marked slow."""
    output = directory.with_name("bundle")
    result = typed("build", "--ratio", "0.5", "--model", directory, "-o", output)
    assert result.exit_code == 0, result.stderr


def same_ids(directory: Path) -> None:
    """A text with the image token is cut into the ids that ``AutoTokenizer`` gives."""
    preflight(Checkpoint.open(directory))
    encoder = PromptEncoder.read(prompt_files(directory), directory)
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in ("<s>USER: <image>\nWhat is this?</s><pad>", " a<image>b <video>", "é漢🙂"):
        assert encoder.question(text) == theirs.encode(text)
    assert encoder.image_token_id == theirs.convert_tokens_to_ids("<image>")


def same_pixels(directory: Path) -> None:
    """A picture becomes the numbers that ``AutoImageProcessor`` makes of it."""
    checkpoint = Checkpoint.open(directory)
    preflight(checkpoint)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    theirs = AutoImageProcessor.from_pretrained(directory, backend="pil")(picture)
    ours = preprocess([picture], checkpoint.shape(None).preprocess, IMAGE_LAYOUT).pixel_values
    np.testing.assert_array_equal(ours, np.stack(theirs["pixel_values"]))
