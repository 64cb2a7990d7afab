"""PruMerge's selection: the authors' double loop as one weight matrix times the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Attention, Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, mark_places, sort_ascending

FAR = 4.0  # below every cosine, subtracted


class PruneAndMerge(Selector):
    """Salient and given places with their neighbours, and one token for the rest.

    Args:
        salient: Places taken by their score.
        neighbours: Tokens that a place takes in, itself not counted.
        spaced: Places that are given.
    """

    attention: Attention | None = "fused"
    needs: frozenset[Clue] = frozenset({"keys"})
    spaced: Tensor

    def __init__(self, salient: int, neighbours: int, spaced: Sequence[int] = ()) -> None:
        super().__init__()
        self.salient, self.neighbours = salient, neighbours
        self.register_buffer(
            "spaced", torch.tensor(list(spaced), dtype=torch.int64), persistent=False
        )
        self.has_spaced = bool(spaced)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        assert clues.keys is not None
        batch, count = tokens.shape[0], tokens.shape[1]
        kept = self._places(clues.scores, batch)
        weighted = clues.scores.unsqueeze(-1) * tokens.float()
        rest = torch.matmul(1.0 - mark_places(kept, count).unsqueeze(1), weighted)
        no_place = torch.full_like(clues.scores[:, :1], -1.0).to(torch.int64)
        if not kept.shape[1]:
            return rest.to(tokens.dtype), no_place
        own = (kept.unsqueeze(-1) == torch.arange(count, device=kept.device)).to(torch.float32)
        like = cosine(gather_rows(clues.keys, kept), clues.keys) - FAR * own
        least = like.topk(self.neighbours, dim=-1, sorted=True).values[..., -1:]
        near = (like >= least).to(torch.float32)
        merged = gather_rows(tokens, kept).float() + torch.matmul(near, weighted)
        out = torch.cat((merged, rest), dim=1).to(tokens.dtype)
        return out, torch.cat((kept, no_place), dim=1)

    def _places(self, scores: Tensor, batch: int) -> Tensor:
        """Kept places ``[B, K-1]``, ascending."""
        if not self.has_spaced:
            return sort_ascending(scores.topk(self.salient, dim=-1, sorted=True).indices)
        spaced = self.spaced.unsqueeze(0).expand(batch, -1)
        left = scores - FAR * mark_places(self.spaced.unsqueeze(0), scores.shape[1])
        salient = left.topk(self.salient, dim=-1, sorted=True).indices
        return sort_ascending(torch.cat((spaced, salient), dim=1))
