"""ToMe's bipartite soft matching: an ArgMax, a TopK and a one-hot product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, raster_ranks


class MergePairs(Selector):
    """The r most similar pairs become size-weighted means; returns the sizes as well."""

    needs: frozenset[Clue] = frozenset({"mean_keys", "sizes"})

    def __init__(self, shape: ReducerShape) -> None:
        super().__init__()
        # A CLS token is the first of the first set, so the first patch goes to the second.
        self.start = shape.prefix % 2
        self.removed = shape.tokens_in - shape.tokens_out

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor, Tensor]:
        assert clues.mean_keys is not None
        assert clues.sizes is not None
        first = slice(self.start, None, 2)
        second = slice(1 - self.start, None, 2)
        like = cosine(clues.mean_keys[:, first], clues.mean_keys[:, second])
        sets = (lambda rows: rows[:, first], lambda rows: rows[:, second])
        return merge_best_pairs(tokens, clues.sizes, like, sets, self.removed)


def merge_best_pairs(
    tokens: Tensor,
    sizes: Tensor,
    like: Tensor,
    sets: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    removed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of one set join their best of another; the means are weighted by sizes.

    Args:
        tokens: ``[B, N, C]``.
        sizes: ``[B, N]``.
        like: ``[B, A, B']``, how well those of the first set go with those of the second.
        sets: What takes the rows of either out of ``[B, N, …]``.
        removed: Pairs that merge, the best ones.

    Returns:
        Tokens ``[B, N - removed, C]`` in raster order, the places they came from, and their sizes.
    """
    first, second = sets
    wide = sizes.float()
    best, target = like.max(dim=-1)
    order = best.topk(best.shape[1], dim=-1, sorted=True).indices
    merging = order.narrow(1, 0, removed)
    slots = torch.arange(like.shape[2], device=tokens.device)
    joins = (target.gather(1, merging).unsqueeze(-1) == slots).to(torch.float32)
    joins = joins.transpose(1, 2)
    weighted = wide.unsqueeze(-1) * tokens.float()
    total = second(weighted) + torch.matmul(joins, gather_rows(first(weighted), merging))
    joined = torch.matmul(joins, first(wide).gather(1, merging).unsqueeze(-1)).squeeze(-1)
    size = second(wide) + joined
    out = (total / size.unsqueeze(-1)).to(tokens.dtype)
    all_places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
    all_places = all_places.expand(tokens.shape[0], -1)
    places = second(all_places)
    left = best.shape[1] - removed
    if left:
        rest = order.narrow(1, removed, left)
        out = torch.cat((gather_rows(first(tokens), rest), out), dim=1)
        places = torch.cat((first(all_places).gather(1, rest), places), dim=1)
        size = torch.cat((first(wide).gather(1, rest), size), dim=1)
    ranks = raster_ranks(places)
    return gather_rows(out, ranks), places.gather(1, ranks), size.gather(1, ranks).to(sizes.dtype)
