r"""Training rows: many questions about one picture packed into one sequence.

Layout of a row, with token ids exactly as the chat template gives them:

    <s> USER: <image> x 196 | \n question 1 ASSISTANT: answer 1 </s> | \n question 2 ... | padding

Every question attends the head (BOS, "USER: ", the picture) and itself, never another question, and
its positions continue from the head's end. So each one is trained as if it were alone in the row,
and the visual tokens are computed once for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LlavaProcessor

from lvlm_export.demo.train.processor import EOS, PROMPT_HEAD, answer_text, prompt_tail

_LENGTH_STEP = 16  # rows are padded to a multiple of this
NO_LABEL = -100


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of L tokens, one of each of B pictures.

    Attributes:
        input_ids: int64 ``[B, L]``.
        position_ids: int64 ``[B, L]``.
        attention_mask: bool ``[B, 1, L, L]``, True where a row's token may attend.
        labels: int64 ``[B, L]``, the next token where it belongs to an answer, otherwise -100.
        question_index: int64 ``[B, L]``, number of the question in the batch, -1 for head and
            padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    question_index: Tensor


class RowPacker:
    """Turns questions into rows.

    Args:
        processor: Whose tokens.
        image_tokens: Visual tokens of a picture.
    """

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self._pad_id: int = processor.tokenizer.pad_token_id
        self._head = prompt_head(processor, image_tokens)
        self._tail = cache(partial(question_tokens, processor.tokenizer))

    def rows(self, asked: Sequence[Sequence[AnsweredQuestion]]) -> PackedRows:
        """One row for each picture's questions."""
        first = itertools.accumulate((len(questions) for questions in asked), initial=0)
        rows = [self._row(each, number) for each, number in zip(asked, first, strict=False)]
        length = -(-max(len(row[0]) for row in rows) // _LENGTH_STEP) * _LENGTH_STEP
        fills = (self._pad_id, 0, NO_LABEL, -1)
        ids, positions, labels, question_index = (
            torch.tensor([row[field] + [fill] * (length - len(row[field])) for row in rows])
            for field, fill in enumerate(fills)
        )
        return PackedRows(ids, positions, self._mask(question_index), labels, question_index)

    def _row(
        self, questions: Sequence[AnsweredQuestion], first: int
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Token ids, positions, labels and question numbers, from ``first`` on, of one picture."""
        ids, positions = list(self._head), list(range(len(self._head)))
        labels, question_index = [NO_LABEL] * len(ids), [-1] * len(ids)
        for number, question in enumerate(questions, start=first):
            tokens, prompted = self._tail(question)
            ids += tokens
            positions += range(len(self._head), len(self._head) + len(tokens))
            # The token before an answer token predicts it; EOS predicts nothing.
            labels += [NO_LABEL] * (prompted - 1) + tokens[prompted:] + [NO_LABEL]
            question_index += [number] * len(tokens)
        return ids, positions, labels, question_index

    def _mask(self, question_index: Tensor) -> Tensor:
        length = question_index.shape[1]
        is_head = torch.arange(length) < len(self._head)
        same = question_index[:, :, None] == question_index[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding has the head's index, so it always attends something and gives no NaN.
        return ((same | is_head) & causal)[:, None]


def prompt_head(processor: LlavaProcessor, image_tokens: int) -> list[int]:
    """Token ids that every prompt begins with: BOS, "USER: " and the picture's placeholders."""
    head: list[int] = processor.tokenizer(PROMPT_HEAD)["input_ids"]
    return head + [processor.image_token_id] * (image_tokens - 1)


class AnsweredQuestion(Hashable, Protocol):
    """What a row is made of: a question in words and its answer."""

    @property
    def text(self) -> str:
        """The question."""
        ...

    @property
    def answer(self) -> str:
        """Its answer."""
        ...


def question_tokens(tokenizer: Any, question: AnsweredQuestion) -> tuple[list[int], int]:
    """Token ids of question and answer, and how many of them are the question's.

    Raises:
        ValueError: The question's tokens change when its answer follows.
    """
    text = prompt_tail(question.text)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    both = tokenizer(text + answer_text(question.answer), add_special_tokens=False)["input_ids"]
    if both[: len(prompt)] != prompt:
        raise ValueError(f"tokens of {text!r} change when an answer follows ({EOS})")
    return both, len(prompt)
