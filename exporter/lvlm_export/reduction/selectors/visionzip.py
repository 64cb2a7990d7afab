"""VisionZip's selection with constant counts: one TopK, one ArgMax, two products."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Attention, Clues, Selector
from lvlm_export.reduction.tensors import cosine, gather_rows, raster_ranks, sort_ascending


class DominantAndContextual(Selector):
    """Most salient tokens as they are, and targets with the mean of what is most like them.

    Args:
        tokens: N, patches that enter.
        dominant: Tokens that stay as they are, a CLS token among them.
        contextual: Targets that the rest joins.
        has_cls: The tower has a CLS token.
    """

    attention: Attention | None = "salience"

    def __init__(self, tokens: int, dominant: int, contextual: int, has_cls: bool) -> None:
        super().__init__()
        self.contextual, self.has_cls = contextual, has_cls
        # A CLS token is one of the dominant ones, and is always in.
        self.patches = dominant - has_cls
        self.rest = tokens - self.patches
        self.needs = frozenset({"mean_keys", "cls"} if self.has_cls else {"mean_keys"})

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.scores is not None
        order = clues.scores.topk(tokens.shape[1], dim=-1, sorted=True).indices
        places = order.narrow(1, 0, self.patches)
        kept = gather_rows(tokens, places)
        if self.contextual:
            rest = sort_ascending(order.narrow(1, self.patches, self.rest))
            targets, merged = self._merge(tokens, clues, rest)
            places, kept = torch.cat((places, targets), dim=1), torch.cat((kept, merged), dim=1)
        ranks = raster_ranks(places)
        places, kept = places.gather(1, ranks), gather_rows(kept, ranks)
        if clues.cls is not None:
            kept = torch.cat((clues.cls.unsqueeze(1), kept), dim=1)
            places = torch.cat((torch.full_like(places[:, :1], -1), places), dim=1)
        return kept, places

    def _merge(self, tokens: Tensor, clues: Clues, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Places ``[B, c]`` of the targets and the tokens ``[B, c, C]`` they become."""
        assert clues.mean_keys is not None
        step = self.rest // self.contextual
        chosen = [index * step for index in range(self.contextual)]
        others = sorted(set(range(self.rest)) - set(chosen))
        targets = rest[:, chosen]
        target_tokens = gather_rows(tokens, targets)
        if not others:
            return targets, target_tokens
        joining = rest[:, others]
        like = cosine(gather_rows(clues.mean_keys, joining), gather_rows(clues.mean_keys, targets))
        slots = torch.arange(self.contextual, device=tokens.device)
        joins = (like.argmax(dim=-1, keepdim=True) == slots).to(torch.float32).transpose(1, 2)
        total = torch.matmul(joins, gather_rows(tokens, joining).float())
        mean = total / joins.sum(dim=-1, keepdim=True).clamp_min(1.0)
        return targets, (target_tokens.float() + mean).to(tokens.dtype)
