"""iLLaVA's merges: products with what leaves and a TopK of five; of January 2025, one weight row."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Attention, Clues, ScoredSelector
from lvlm_export.reduction.tensors import gather_rows, merge_least_attended, raster_ranks

# Of the tokens that stay, those that take in; and how many leaving tokens each of them takes.
RECYCLING, TAKEN = 0.05, 5


def recycling_count(keep: int) -> int:
    """How many of the tokens that stay take in what leaves."""
    return max(1, round(keep * RECYCLING))


class RecycleRedundant(ScoredSelector):
    """The current release: the weakest of the tokens that stay take in what leaves.

    Args:
        keep: K, the tokens that stay.
        attention: What ranks them.
        group: Tokens that stay or leave together, neighbours in the order given, as a merger of 2 x 2
            patches needs them; K and N are multiples of it. Groups are ranked by their mean score, and
            the tokens that take in are those of lowest score in the groups that stay.
    """

    def __init__(self, keep: int, attention: Attention, group: int = 1) -> None:
        super().__init__(keep, attention)
        assert keep % group == 0, f"{keep} tokens are no whole groups of {group}"
        self.group = group

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        order = self.ranking(clues.scores)
        kept = order.narrow(1, 0, self.keep)
        stay, leave = gather_rows(tokens, kept), gather_rows(tokens, order[:, self.keep :])
        if leave.shape[1]:
            stay = self.recycle(stay, leave)
        raster = raster_ranks(kept)
        return gather_rows(stay, raster), kept.gather(1, raster)

    def ranking(self, scores: Tensor) -> Tensor:
        """Places ``[B, N]``: the K that stay by falling score, then those that leave."""
        if self.group == 1:
            return scores.topk(scores.shape[1], dim=-1, sorted=True).indices
        grouped = scores.reshape(scores.shape[0], -1, self.group).mean(dim=-1)
        first = grouped.topk(grouped.shape[1], dim=-1, sorted=True).indices * self.group
        inside = torch.arange(self.group, device=scores.device)
        places = (first.unsqueeze(-1) + inside).flatten(1)
        kept, left = places[:, : self.keep], places[:, self.keep :]
        falling = scores.gather(1, kept).topk(self.keep, dim=-1, sorted=True).indices
        return torch.cat((kept.gather(1, falling), left), dim=1)

    def recycle(self, stay: Tensor, leave: Tensor) -> Tensor:
        """``stay [B, K, C]`` by falling score, whose last take in of ``leave [B, R, C]``."""
        taking = recycling_count(self.keep)
        weak, left = stay[:, self.keep - taking :].float(), leave.float()
        # The root before the product: where products are made in half precision, it fits sooner.
        products = torch.matmul(weak * weak.shape[-1] ** -0.5, left.transpose(-1, -2))
        best, which = products.topk(min(TAKEN, left.shape[1]), dim=-1, sorted=True)
        weights = torch.softmax(best, dim=-1)
        taken = gather_rows(left, which.flatten(1)).reshape(*which.shape, left.shape[-1])
        mean = torch.matmul(weights.unsqueeze(-2), taken).squeeze(-2)
        merged = ((weak + mean) / 2).to(stay.dtype)
        return torch.cat((stay[:, : self.keep - taking], merged), dim=1)


class AverageLeastAttended(ScoredSelector):
    """The release of January 2025: what leaves and one more become their weighted mean."""

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        return merge_least_attended(tokens, clues.scores, self.keep)
