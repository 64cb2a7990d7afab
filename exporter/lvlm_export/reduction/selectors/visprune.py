"""VisPruner's selection: a TopK, then a constant number of steps that remove duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Attention, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, sort_ascending


class ImportantAndDiverse(Selector):
    """Most salient tokens, and those of the rest that have no near duplicate.

    Args:
        important: Tokens taken by their score.
        removals: Duplicates that leave the rest in every step.
    """

    attention: Attention | None = "salience"

    def __init__(self, important: int, removals: Sequence[int]) -> None:
        super().__init__()
        self.important, self.removals = important, tuple(removals)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        count = tokens.shape[1]
        order = clues.scores.topk(count, dim=-1, sorted=True).indices
        kept = order.narrow(1, 0, self.important)
        diverse = count - self.important - sum(self.removals)
        if diverse:
            rest = sort_ascending(order.narrow(1, self.important, count - self.important))
            kept = torch.cat(
                (kept, drop_duplicates(rest, cosine(tokens, tokens), self.removals)), dim=1
            )
        kept = sort_ascending(kept)
        return gather_rows(tokens, kept), kept


def drop_duplicates(rest: Tensor, similar: Tensor, removals: Sequence[int]) -> Tensor:
    """Places of ``rest [B, R]`` after duplicates left step by step, by ``similar [B, N, N]``."""
    for removed in removals:
        first, second = rest[:, ::2], rest[:, 1::2]
        columns = second.unsqueeze(1).expand(-1, first.shape[1], -1)
        twin = gather_rows(similar, first).gather(2, columns).amax(dim=-1)
        left = first.shape[1] - removed
        if left:
            places = twin.topk(left, dim=-1, largest=False, sorted=True).indices
            rest = sort_ascending(torch.cat((first.gather(1, places), second), dim=1))
        else:
            rest = second
    return rest
