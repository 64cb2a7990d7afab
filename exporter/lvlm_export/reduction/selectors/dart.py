"""DART's selection as eight masked TopK."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, mark_places, sort_ascending

TAKEN = 4.0  # above every cosine
BEFORE = 1e6  # above every norm, and small enough to leave their order


class LeastDuplicated(Selector):
    """Pivots by the L1 norm of their keys, then in turn the tokens least like each.

    Args:
        keep: K, the pivots among them.
        pivots: Visual pivots, and as many of the text after the image. Where fewer stand there, the
            text before it makes up the number.
        quotas: Tokens that each pivot keeps, the visual pivots first.
    """

    needs: frozenset[Clue] = frozenset({"keys", "text", "text_keys", "text_after"})

    def __init__(self, keep: int, pivots: int, quotas: Sequence[int]) -> None:
        super().__init__()
        self.keep, self.pivots, self.quotas = keep, pivots, tuple(quotas)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.keys is not None
        assert clues.text is not None
        assert clues.text_keys is not None
        assert clues.text_after is not None
        count = tokens.shape[1]
        norms = clues.keys.float().abs().sum(dim=-1)
        visual = norms.topk(min(self.pivots, self.keep), dim=-1, sorted=True).indices
        loud = clues.text_keys.float().abs().sum(dim=-1).unsqueeze(0)
        loud = loud - BEFORE * (1.0 - clues.text_after.to(torch.float32))
        words = loud.topk(self.pivots, dim=-1, sorted=True).indices
        spoken = gather_rows(clues.text.unsqueeze(0).expand(tokens.shape[0], -1, -1), words)
        pivots = torch.cat((gather_rows(tokens, visual), spoken), dim=1)
        similar = cosine(pivots, tokens)
        kept, taken = [visual], mark_places(visual, count)
        for pivot, quota in enumerate(self.quotas):
            if quota:
                left = similar[:, pivot] + taken * TAKEN
                index = left.topk(quota, dim=-1, largest=False, sorted=True).indices
                kept.append(index)
                taken = taken + mark_places(index, count)
        places = sort_ascending(torch.cat(kept, dim=1))
        return gather_rows(tokens, places), places
