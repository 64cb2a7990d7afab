"""ToMe's bipartite soft matching: an ArgMax, a TopK and a one-hot product."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows


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
        count, sizes = tokens.shape[1], clues.sizes.float()
        like = cosine(clues.mean_keys[:, first], clues.mean_keys[:, second])
        best, target = like.max(dim=-1)
        order = best.topk(best.shape[1], dim=-1, sorted=True).indices
        merging = order.narrow(1, 0, self.removed)
        slots = torch.arange(like.shape[2], device=tokens.device)
        joins = (target.gather(1, merging).unsqueeze(-1) == slots).to(torch.float32)
        joins = joins.transpose(1, 2)
        weighted = sizes.unsqueeze(-1) * tokens.float()
        total = weighted[:, second] + torch.matmul(joins, gather_rows(weighted[:, first], merging))
        size = sizes[:, second] + torch.matmul(
            joins, sizes[:, first].gather(1, merging).unsqueeze(-1)
        ).squeeze(-1)
        merged = (total / size.unsqueeze(-1)).to(tokens.dtype)
        all_places = torch.arange(count, device=tokens.device).unsqueeze(0)
        all_places = all_places.expand(tokens.shape[0], -1)
        left = best.shape[1] - self.removed
        out, places = merged, all_places[:, second]
        if left:
            rest = order.narrow(1, self.removed, left)
            out = torch.cat((gather_rows(tokens[:, first], rest), out), dim=1)
            places = torch.cat((all_places[:, first].gather(1, rest), places), dim=1)
            size = torch.cat((sizes[:, first].gather(1, rest), size), dim=1)
        keys = places.to(torch.float32)
        ranks = keys.topk(keys.shape[1], dim=-1, largest=False, sorted=True).indices
        sizes = size.gather(1, ranks).to(clues.sizes.dtype)
        return gather_rows(out, ranks), places.gather(1, ranks), sizes
