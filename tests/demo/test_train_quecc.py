"""The script that trains QueCC on the demo task: rows, questions and what learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.mosaics.train_quecc import (
    LEVELS,
    QuestionPacker,
    frozen_features,
    loss_of,
    quecc_model,
    question_states,
)
from lvlm_export.demo.train.objectives import vision_features
from lvlm_runtime.prompt.encoder import PromptEncoder

TOKENS = 4


@pytest.fixture(scope="module")
def packer() -> QuestionPacker:
    return QuestionPacker(AutoProcessor.from_pretrained(CHECKPOINT), TOKENS)


def test_a_row_is_the_prompt_that_the_runtime_writes(packer: QuestionPacker) -> None:
    batch = packer.batch(5, 3, flip=False)
    encoder, decode = PromptEncoder.open(CHECKPOINT), packer.tokenizer.decode
    assert sorted(set(batch.pictures.tolist())) == [0, 1, 2]
    for row, length, query in zip(
        range(len(batch.pictures)), batch.query_lengths, batch.query_ids, strict=True
    ):
        question = decode(query[:length], skip_special_tokens=True)
        assert query[:length].tolist() == encoder.question(question)
        prompt = encoder.encode(question, 1)
        at = prompt.index(encoder.image_token_id)
        expected = [*prompt[:at], *[encoder.image_token_id] * TOKENS, *prompt[at + 1 :]]
        assert batch.input_ids[row, : len(expected)].tolist() == expected
        labels = batch.labels[row]
        assert (labels[: len(expected) - 1] == -100).all()
        answer = labels[labels >= 0]
        assert answer[-1] == packer.tokenizer.eos_token_id
        # Every label is the token after it.
        places = (labels >= 0).nonzero()[:, 0]
        assert batch.input_ids[row, places + 1].tolist() == answer.tolist()


def test_only_the_projector_learns_and_the_question_reaches_it(packer: QuestionPacker) -> None:
    model = quecc_model(CHECKPOINT, TOKENS, seed=0).requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    batch = packer.batch(0, 2, flip=False)
    loss, right = loss_of(model, batch)
    loss.backward()
    assert 0 <= right <= 1
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if "multi_modal_proj" in name}
    text = model.model.multi_modal_projector[0].text_projection[0].weight
    assert text.grad is not None
    assert text.grad.abs().max() > 0


@torch.no_grad()
def test_features_and_questions_are_the_checkpoints(packer: QuestionPacker) -> None:
    model = quecc_model(CHECKPOINT, TOKENS, seed=0)
    batch = packer.batch(0, 1, flip=False)
    features = frozen_features(model, batch.pixel_values)
    assert features.shape == (1, 196, 96 * len(LEVELS))
    torch.testing.assert_close(features[..., -96:], vision_features(model, batch.pixel_values))
    together = question_states(model, batch)
    for row, length in enumerate(batch.query_lengths):
        alone = model.model.text_query(batch.query_ids[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_many_questions_about_a_picture_are_as_each_alone(packer: QuestionPacker) -> None:
    model = quecc_model(CHECKPOINT, TOKENS, seed=0)
    batch = packer.batch(0, 2, flip=False)
    features, question = frozen_features(model, batch.pixel_values), question_states(model, batch)
    projector = model.model.multi_modal_projector
    shared = projector(features, question, batch.pictures)
    torch.testing.assert_close(shared, projector(features[batch.pictures], question))


@pytest.mark.parametrize("tokens", [2, 16, 0])
def test_a_count_that_the_grid_does_not_give_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"do not divide into {tokens} tokens; into \[1, 4, 49"):
        quecc_model(Path(CHECKPOINT), tokens, seed=0)
