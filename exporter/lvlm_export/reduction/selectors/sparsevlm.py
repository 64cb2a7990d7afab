"""SparseVLM's selection with constant counts: raters as weights, clusters as one-hot products."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import gather_rows, sort_ascending

TIE = 1e-6
LEAST = torch.finfo(torch.float32).min


class RatedAndRecycled(Selector):
    """Tokens that the raters attend most as they are, and clusters of the better of the rest.

    Args:
        kept: Tokens that stay as they are.
        clusters: Tokens that stand for the recycled ones.
        recycled: Tokens that the clusters are made of.
    """

    needs: frozenset[Clue] = frozenset({"text_attention", "decoder_input"})

    def __init__(self, kept: int, clusters: int, recycled: int) -> None:
        super().__init__()
        self.kept, self.clusters, self.recycled = kept, clusters, recycled

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.text_attention is not None
        raters = rater_weights(clues)
        scores = torch.matmul(raters.unsqueeze(1), clues.text_attention)[:, 0]
        order = scores.topk(tokens.shape[1], dim=-1, sorted=True).indices
        places = order.narrow(1, 0, self.kept)
        kept = gather_rows(tokens, places)
        if self.clusters:
            pool = sort_ascending(order.narrow(1, self.kept, self.recycled))
            centres, means = cluster_tokens(gather_rows(tokens, pool), self.clusters)
            places = torch.cat((places, pool.gather(1, centres)), dim=1)
            kept = torch.cat((kept, means), dim=1)
        ranks = places.to(torch.float32).topk(places.shape[1], dim=-1, largest=False).indices
        return gather_rows(kept, ranks), places.gather(1, ranks)


def rater_weights(clues: Clues) -> Tensor:
    """``[n, T]``: equal weights on the text rows that rate an image, zero on the others."""
    assert clues.text_embeds is not None
    assert clues.visual_embeds is not None
    assert clues.text_after is not None
    products = torch.matmul(clues.visual_embeds.float(), clues.text_embeds.float().T)
    after = clues.text_after.unsqueeze(1)
    spread = torch.softmax(products.masked_fill(~after, LEAST), dim=-1).mean(dim=1)
    valid = clues.text_after.to(torch.float32)
    mean = spread.sum(dim=-1, keepdim=True) / valid.sum(dim=-1, keepdim=True).clamp_min(1.0)
    raters = (spread > mean).to(torch.float32) * valid
    # Where every text token gets the same, none is above the mean and all of them rate.
    raters = torch.where(raters.sum(dim=-1, keepdim=True) > 0, raters, valid)
    return raters / raters.sum(dim=-1, keepdim=True).clamp_min(1.0)


def cluster_tokens(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Density-peak clusters: centres ``[B, c]`` among ``tokens [B, M, C]``, means ``[B, c, C]``.

    Source: DPC-KNN (arXiv:2204.08680) as the authors use it, the number of clusters for its k.
    """
    total, width = tokens.shape[1], tokens.shape[2]
    square = squared_distances(tokens) / width
    near = square.topk(min(count, total), dim=-1, largest=False, sorted=True).values
    ramp = torch.arange(total, dtype=torch.float32, device=tokens.device) * TIE
    density = torch.exp(-near.mean(dim=-1)) - ramp
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    distance = square.sqrt()
    farthest = distance.amax(dim=(1, 2), keepdim=True)
    apart = torch.where(denser, distance, farthest).amin(dim=-1)
    centres = (apart * density - ramp).topk(count, dim=-1, sorted=True).indices
    to_centre = gather_rows(distance, centres)
    slots = torch.arange(count, device=tokens.device)
    # A centre belongs to itself, whatever lies on the same spot.
    own = centres.unsqueeze(-1) == torch.arange(total, device=tokens.device)
    joined = torch.where(own, -1.0, to_centre).argmin(dim=1, keepdim=True)
    joins = (joined == slots.view(1, -1, 1)).to(torch.float32)
    means = torch.matmul(joins, tokens.float()) / joins.sum(dim=-1, keepdim=True)
    return centres, means.to(tokens.dtype)


def squared_distances(tokens: Tensor) -> Tensor:
    """Squared distances ``[B, M, M]`` of ``tokens [B, M, C]``, exactly symmetric."""
    rows = tokens.float()
    # Around their mean the products are small, and so is the rounding of their difference.
    rows = rows - rows.mean(dim=1, keepdim=True)
    products = torch.matmul(rows, rows.transpose(1, 2))
    products = (products + products.transpose(1, 2)) / 2
    norms = rows.square().sum(dim=-1)
    square = norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * products
    places = torch.arange(rows.shape[1], device=tokens.device)
    itself = places.unsqueeze(0) == places.unsqueeze(1)
    return torch.where(itself, 0.0, square.clamp_min(0.0))
