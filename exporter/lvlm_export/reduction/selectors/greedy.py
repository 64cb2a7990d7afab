"""Greedy subsets, unrolled: K steps of an ArgMax, a gather and an update of V numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, sort_ascending

TAKEN = 1e6
RIDGE = 1e-4
SMALLEST = 1e-6
SAME = 1e-5


def row_of(matrix: Tensor, index: Tensor) -> Tensor:
    """Row ``index [B, 1]`` of ``matrix [B, V, V]`` -> ``[B, V]``."""
    return gather_rows(matrix, index)[:, 0]


class FarthestFirst(Selector):
    """DivPrune's max-min choice of K tokens."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        distance = 1.0 - cosine(tokens, tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        itself = (places.unsqueeze(-1) == places.unsqueeze(1)).to(torch.float32)
        nearest = (distance + TAKEN * itself).amin(dim=-1)
        # A chosen token's distance to itself is below every other's, so it is not chosen again.
        distance = distance - TAKEN * itself
        index = nearest.argmax(dim=-1, keepdim=True)
        chosen, nearest = [index], row_of(distance, index)
        for _ in range(self.keep - 1):
            index = nearest.argmax(dim=-1, keepdim=True)
            chosen.append(index)
            nearest = torch.minimum(nearest, row_of(distance, index))
        kept = sort_ascending(torch.cat(chosen, dim=1))
        return gather_rows(tokens, kept), kept


class GreedyDpp(Selector):
    """CDPruner's greedy maximum a posteriori choice of K tokens.

    Source: arXiv:1709.05135 algorithm 1, as the authors use it. A token in the direction of an
    earlier one adds nothing to a choice that holds the earlier one; such tokens come after all
    others, in raster order, instead of where rounding would put them.
    """

    needs: frozenset[Clue] = frozenset({"text"})

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def relevance(self, tokens: Tensor, text: Tensor) -> Tensor:
        """``[B, V]`` from 0 to 1, of tokens ``[B, V, C]`` and text ``[T, C]``."""
        relevance = cosine(tokens, text).mean(dim=-1)
        low, high = relevance.amin(dim=-1, keepdim=True), relevance.amax(dim=-1, keepdim=True)
        return (relevance - low) / (high - low).clamp_min(SMALLEST) + SMALLEST

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.text is not None
        similar = cosine(tokens, tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        earlier = places.unsqueeze(1) < places.unsqueeze(-1)
        repeated = ((similar > 1 - SAME) & earlier).to(torch.float32).amax(dim=-1)
        relevance = self.relevance(tokens, clues.text) * (1 - repeated)
        kernel = relevance.unsqueeze(-1) * similar * relevance.unsqueeze(1)
        # Rows of repeated tokens are zero, so that choosing one changes nothing for the others.
        after_all = -(places + 1).to(torch.float32)
        gain = torch.where(repeated > 0, after_all, kernel.diagonal(dim1=1, dim2=2) + RIDGE)
        chosen, factor = [], None
        for step in range(self.keep):
            index = gain.argmax(dim=-1, keepdim=True)
            chosen.append(index)
            if step == self.keep - 1:
                break
            row, pivot = row_of(kernel, index), gain.gather(1, index).clamp_min(SMALLEST).sqrt()
            if factor is not None:
                # Rows of the factor so far: [B, step, V]; their column at the chosen token. Not a
                # matrix product, which Turing would round to half precision.
                column = factor.gather(2, index.unsqueeze(1).expand(-1, step, -1))
                row = row - (column * factor).sum(dim=1)
            row = row / pivot
            last = row.unsqueeze(1)
            factor = last if factor is None else torch.cat((factor, last), dim=1)
            gain = torch.where(places == index, -TAKEN, gain - row.square())
        kept = sort_ascending(torch.cat(chosen, dim=1))
        return gather_rows(tokens, kept), kept
