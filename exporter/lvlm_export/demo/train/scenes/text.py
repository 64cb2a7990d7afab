"""Tokens of scenes' questions, packed rows, and the model that training of answers begins with.

The layout of a row is that of ``lvlm_export.demo.train.batches``: the picture once, then every question
about it, each of which attends the picture and itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from lvlm_export.demo import CHECKPOINT
from lvlm_export.demo.scene_questions import SceneQuestion, questions_about
from lvlm_export.demo.scenes import make_scene
from lvlm_export.demo.train.batches import NO_LABEL, prompt_head, question_tokens
from lvlm_export.demo.train.processor import build_processor, prompt_tail

VOCAB_SIZE = 448
"""Token ids: bytes, and every word of the questions as one token."""

_CORPUS_SCENES = 400
_LENGTH_STEP = 16
_SHARED = ("model.language_model.embed_tokens.weight", "lm_head.weight")


@cache
def scene_processor() -> LlavaProcessor:
    """The demo's processor with a tokenizer trained on questions about scenes."""
    return build_processor(_corpus(), VOCAB_SIZE)


def _corpus() -> Iterator[str]:
    for seed in range(_CORPUS_SCENES):
        for groups in questions_about(make_scene(seed, "train").things).values():
            for group in groups:
                for question in group:
                    yield f"USER: {prompt_tail(question.text)} {question.answer}"


def scene_model(shipped: LlavaForConditionalGeneration, seed: int) -> LlavaForConditionalGeneration:
    """A model for scenes with the mosaic demo's weights.

    Tokens that both tokenizers have keep their rows in the token table and in the output layer; new
    ones get random rows as large as the old ones are.

    Args:
        shipped: The mosaic demo's model in float32.
        seed: Of the new rows.
    """
    config = AutoConfig.from_pretrained(CHECKPOINT)
    config.text_config.vocab_size = VOCAB_SIZE
    model = LlavaForConditionalGeneration(config)
    state = shipped.state_dict()
    old = AutoTokenizer.from_pretrained(CHECKPOINT).get_vocab()
    new = scene_processor().tokenizer.get_vocab()
    generator = torch.Generator().manual_seed(seed)
    for name in _SHARED:
        before = state[name]
        rows = torch.randn(VOCAB_SIZE, before.shape[1], generator=generator) * before.std()
        for token, number in new.items():
            if token in old:
                rows[number] = before[old[token]]
        state[name] = rows
    model.load_state_dict(state)
    model.generation_config = shipped.generation_config
    return model


@dataclass(frozen=True, eq=False)
class PackedScenes:
    """Rows of L tokens, one of each of B pictures.

    Attributes:
        input_ids: int64 ``[B, L]``.
        position_ids: int64 ``[B, L]``.
        attention_mask: bool ``[B, 1, L, L]``, True where a token may attend.
        labels: int64 ``[B, L]``, the next token where it belongs to an answer, otherwise -100.
        question: int64 ``[B, L]``, number of the question in the whole batch, -1 outside.
        kinds: Kind of each question of the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    question: Tensor
    kinds: tuple[str, ...]


class ScenePacker:
    """Turns questions into rows.

    Args:
        processor: Whose tokens.
        image_tokens: Visual tokens of a picture.
    """

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self._head = prompt_head(processor, image_tokens)
        self._pad: int = processor.tokenizer.pad_token_id
        self._tail = cache(partial(question_tokens, processor.tokenizer))

    def pack(self, asked: Sequence[Sequence[SceneQuestion]]) -> PackedScenes:
        """One row for each picture's questions."""
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        kinds: list[str] = []
        start = len(self._head)
        for questions in asked:
            ids, positions = list(self._head), list(range(start))
            labels, numbers = [NO_LABEL] * start, [-1] * start
            for question in questions:
                tokens, prompted = self._tail(question)
                ids += tokens
                positions += range(start, start + len(tokens))
                # The token before an answer token predicts it; EOS predicts nothing.
                labels += [NO_LABEL] * (prompted - 1) + tokens[prompted:] + [NO_LABEL]
                numbers += [len(kinds)] * len(tokens)
                kinds.append(question.kind)
            rows.append((ids, positions, labels, numbers))
        length = -(-max(len(row[0]) for row in rows) // _LENGTH_STEP) * _LENGTH_STEP
        ids_, positions_, labels_, numbers_ = (
            torch.tensor([row[field] + [fill] * (length - len(row[field])) for row in rows])
            for field, fill in enumerate((self._pad, 0, NO_LABEL, -1))
        )
        same = numbers_[:, :, None] == numbers_[:, None, :]
        is_head = torch.arange(length) < start
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding has the head's number, so it always attends something and gives no NaN.
        mask = ((same | is_head) & causal)[:, None]
        return PackedScenes(ids_, positions_, mask, labels_, numbers_, tuple(kinds))


def scene_answer_loss(
    model: LlavaForConditionalGeneration, features: Tensor, batch: PackedScenes
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the answers, every question counting the same, and which are right.

    An answer is right where every token of it, EOS included, is the most likely one after the right
    ones before it, which is the same as greedy decoding giving that answer.

    Args:
        model: The whole model; its tower is not run.
        features: Of the tower, ``[B, N, C]``.
        batch: Rows with N visual tokens.

    Returns:
        A scalar, and bool ``[questions]``.
    """
    answered = batch.labels >= 0
    labels, question = batch.labels[answered], batch.question[answered]
    logits = model.lm_head(_hidden_states(model, features, batch)[answered]).float()
    losses = functional.cross_entropy(logits, labels, reduction="none")
    tokens = torch.bincount(question, minlength=len(batch.kinds))
    wrong = torch.bincount(
        question, weights=(logits.argmax(-1) != labels).double(), minlength=len(batch.kinds)
    )
    return (losses / tokens[question]).sum() / len(batch.kinds), wrong == 0


def _hidden_states(model: Any, features: Tensor, batch: PackedScenes) -> Tensor:
    visual = model.model.multi_modal_projector(features)
    embeddings = model.get_input_embeddings()(batch.input_ids)
    is_image = (batch.input_ids == model.config.image_token_id).unsqueeze(-1)
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embeddings.masked_scatter(is_image, visual.to(embeddings.dtype)),
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden
