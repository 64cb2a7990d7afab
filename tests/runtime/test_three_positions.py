"""Conversations, memory and chunks with models whose tokens have three positions each (M-RoPE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from families import Built, shared_case
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime import Session
from lvlm_runtime.chain.planes import Plane
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.image.preprocess import preprocess
from lvlm_runtime.prompt.sequence import Origins
from lvlm_runtime.remembered import PictureMemory
from turns import check_turns

CPU: dict[str, Any] = {"backend": "onnxruntime", "device": "cpu", "threads": 1}
SIZE = (40, 56)
ONE, OTHER = (
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))
    for seed in (1, 2)
)
TURNS: tuple[tuple[str, tuple[Image.Image, ...]], ...] = (
    ("How many?", (ONE,)),
    ("And here?", (OTHER,)),
    ("Which of them?", ()),
)
# By hand: sites among the decoder layers that add planes, so that these are taken up behind a site.
NAMES = ("qwen2_5_vl", "qwen3_vl")
SLOW = ("qwen2_vl", "qwen3_vl-sites-by-hand", "qwen3_vl-sized")


@pytest.fixture(
    scope="module", params=[*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def model(request: pytest.FixtureRequest, shared: Path) -> Built:
    return shared_case(request.param, shared)


@pytest.fixture(scope="module")
def session(model: Built) -> Session:
    return Session.open(model.bundle, **CPU)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("ratio", [1.0, 0.33])
def test_turns_are_answered_as_in_a_fresh_session(
    session: Session, ratio: float, chunk: int | None
) -> None:
    """Pieces of seven rows cut pictures in two."""
    chat = session.chat(prefill_chunk=chunk, speculate=3 if chunk else 0)
    reused = check_turns(session, chat, ratio, TURNS)
    visual = session.bundle.budget(ratio).layouts[0].tokens_in
    assert reused[0] == 0
    assert visual < reused[1] < reused[2] - visual


def test_turns_are_answered_as_transformers_does(model: Built, session: Session) -> None:
    checkpoint = Checkpoint.open(model.checkpoint)
    family, kind = checkpoint.family, checkpoint.family.model_class(checkpoint.config)
    whole = kind.from_pretrained(model.checkpoint, attn_implementation="eager").eval()
    shape = make_plan(checkpoint, BuildOptions((0.5,), image_size=SIZE)).shape
    chat = session.chat(prefill_chunk=9)
    for prompt, images in TURNS:
        answer = chat.ask(prompt, images, 1.0, max_new_tokens=6)
        placeholder = session.bundle.manifest.text.image_token_id
        count = session.bundle.manifest.vision_tokens
        ids = [
            token
            for each in session.encoder.encode_messages(chat.messages[:-1])
            for token in [each] * (count if each == placeholder else 1)
        ]
        shown = [each.content for each in chat.pictures]
        prepared = preprocess(shown, shape.preprocess, shape.layouts[0])
        pixels = torch.from_numpy(prepared.pixel_values)
        asked = torch.tensor([ids])
        sizes = [SIZE] * len(pixels)
        given = family.generate_inputs(whole, pixels, shape.layouts[0], sizes, None, asked)
        wanted = whole.generate(input_ids=asked, max_new_tokens=6, do_sample=False, **given)
        assert list(answer.token_ids) == wanted[0, len(ids) :].tolist()


@pytest.mark.parametrize("ratio", [1.0, 0.33])
def test_a_remembered_picture_is_not_computed_again(model: Built, ratio: float) -> None:
    session, plain = (Session.open(model.bundle, **CPU) for _ in range(2))
    kept = session.remember(ONE, ratio)
    visual = session.bundle.budget(ratio).layouts[0].tokens_in
    assert kept.tokens == visual
    for prompt in ("How many?", "What is it?"):
        recorder = Recorder()
        answer = session.generate(prompt, [kept], ratio, max_new_tokens=5, recorder=recorder)
        assert answer.token_ids == plain.generate(prompt, [ONE], ratio, max_new_tokens=5).token_ids
        assert answer.reused_tokens >= visual
        assert not {"preprocess", "vision.0"} & {span.name for span in recorder.spans}


def test_the_memory_counts_what_decoder_layers_add() -> None:
    plane = Plane(np.zeros((1, 6, 8), np.float32), Origins.whole(1, 6))
    tokens = np.zeros((1, 4, 8), np.float32)
    visual = Visual(tokens, Origins.whole(1, 4), None, {"plane.0": plane})
    memory = PictureMemory(1000)
    assert memory.visual("a picture", lambda: visual) is visual
    assert memory.held_bytes == (4 + 6) * 8 * 4 + (4 + 6) * 8
