"""Prompts on their way through the decoder: what is asked, the rows between two layers, what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lvlm_export.tune.branches import Group


@dataclass(frozen=True)
class Ask:
    """A question, the beginning of an answer, and who wants to know what follows.

    Attributes:
        number: The question's.
        picture: Number of its picture.
        front: Token ids before the picture.
        rest: Token ids behind it.
        feed: Tokens of the answer so far.
        wanted: Numbers of the trials.
        again: It was asked before, with less of the answer.
    """

    number: int
    picture: int
    front: tuple[int, ...]
    rest: tuple[int, ...]
    feed: tuple[int, ...]
    wanted: frozenset[int]
    again: bool = False


@dataclass(frozen=True)
class PromptState:
    """Prompts between two layers.

    Attributes:
        front: ``[G, F + V, C]``, text and picture before the questions.
        front_positions: ``[G, R, F + V]``.
        rest: ``[N, T, C]``, questions and what is fed, filled up behind with rows that nobody sees.
        rest_positions: ``[N, R, T]``.
        owner: ``[N]``, which front each question has.
        asks: The N questions.
        entered: ``[G0, V0, C]``, the pictures' tokens as they entered.
        entered_owner: ``[N]``, which of them each question has.
        bias: ``[G, F + V]``, what attention adds to the scores of the fronts' rows; None for nothing.
        planes: ``[G, V, C]`` each, what the first layers add to the pictures' tokens behind them.
    """

    front: Tensor
    front_positions: Tensor
    rest: Tensor
    rest_positions: Tensor
    owner: Tensor
    asks: tuple[Ask, ...]
    entered: Tensor
    entered_owner: Tensor
    bias: Tensor | None = None
    planes: tuple[Tensor, ...] = ()

    def pick(self, kept: Sequence[int]) -> PromptState:
        """Some of the questions, and the fronts that they have."""
        if len(kept) == len(self.asks):
            return self
        index = torch.tensor(kept)
        fronts, owner = torch.unique(self.owner[index], return_inverse=True)
        return replace(
            self,
            front=self.front[fronts],
            front_positions=self.front_positions[fronts],
            rest=self.rest[index],
            rest_positions=self.rest_positions[index],
            owner=owner,
            asks=tuple(self.asks[number] for number in kept),
            entered_owner=self.entered_owner[index],
            bias=None if self.bias is None else self.bias[fronts],
            planes=tuple(plane[fronts] for plane in self.planes),
        )


@dataclass(frozen=True)
class NextLogits:
    """What follows each token that was fed, for a group of trials.

    Attributes:
        group: The trials.
        ask: The question.
        logits: ``[1 + feed, vocabulary]``.
    """

    group: Group
    ask: Ask
    logits: Tensor


@dataclass(frozen=True)
class Scored:
    """What a layer says of the next one's site.

    Attributes:
        front_keys: ``[G, Hkv, F + V, D]``.
        front_weights: ``[G, F + V, F + V]``, mean over heads.
        rest_keys: ``[N, Hkv, T, D]``.
        rest_weights: ``[N, T, F + V + T]``.
    """

    front_keys: Tensor
    front_weights: Tensor
    rest_keys: Tensor
    rest_weights: Tensor


def pick_scored(scored: Scored | None, state: PromptState, kept: Sequence[int]) -> Scored | None:
    """As ``PromptState.pick``, for what was scored of the state."""
    if scored is None or len(kept) == len(state.asks):
        return scored
    index = torch.tensor(kept)
    fronts = torch.unique(state.owner[index])
    return Scored(
        scored.front_keys[fronts],
        scored.front_weights[fronts],
        scored.rest_keys[index],
        scored.rest_weights[index],
    )
