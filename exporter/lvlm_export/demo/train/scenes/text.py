"""Tokens of scenes' questions, their rows, and the model that training of answers begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from lvlm_export.demo.questions import SceneQuestion, questions_about
from lvlm_export.demo.scenes import make_scene
from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.processor import build_processor, prompt_tail
from lvlm_export.demo.train.rows import PackedRows, RowPacker

VOCAB_SIZE = 448
"""Token ids: bytes, and every word of the questions as one token."""

_CORPUS_SCENES = 400
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
class PackedScenes(PackedRows):
    """Rows of questions about scenes.

    Attributes:
        kinds: Kind of each question of the batch.
    """

    kinds: tuple[str, ...]


class ScenePacker(RowPacker):
    """Turns questions about scenes into rows."""

    def pack(self, asked: Sequence[Sequence[SceneQuestion]]) -> PackedScenes:
        """One row for each picture's questions."""
        kinds = tuple(question.kind for questions in asked for question in questions)
        return PackedScenes(**vars(self.rows(asked)), kinds=kinds)
