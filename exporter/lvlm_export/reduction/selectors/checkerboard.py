"""One colour of a board joins the other: one product of keys, one ArgMax, one one-hot product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, squared_steps


class JoinColours(Selector):
    """Constant places leave, each into the most similar near one of the other colour.

    Args:
        grid: Rows and columns of the N tokens.
        leaving: The raster places of one colour that leave, ascending.
        penalty: What a squared step of distance takes from the cosine of two keys.
    """

    needs: frozenset[Clue] = frozenset({"keys"})
    leaving: Tensor
    others: Tensor
    rest: Tensor
    raster: Tensor

    def __init__(self, grid: tuple[int, int], leaving: Sequence[int], penalty: float) -> None:
        super().__init__()
        rows, columns = grid
        self.columns, self.penalty = columns, penalty
        colour = [(place // columns + place % columns) % 2 for place in range(rows * columns)]
        gone = set(leaving)
        others = [place for place, odd in enumerate(colour) if odd]
        rest = [place for place, odd in enumerate(colour) if not odd and place not in gone]
        ranks = sorted(range(len(others + rest)), key=(others + rest).__getitem__)
        for name, places in (("leaving", list(leaving)), ("others", others), ("rest", rest)):
            self.register_buffer(name, torch.tensor(places, dtype=torch.int64), persistent=False)
        self.register_buffer("raster", torch.tensor(ranks), persistent=False)
        self.whole = not rest

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        assert clues.keys is not None
        keys = clues.keys
        like = cosine(keys.index_select(1, self.leaving), keys.index_select(1, self.others))
        one, other = self.leaving.unsqueeze(1), self.others.unsqueeze(0)
        like = like - self.penalty * squared_steps(one, other, self.columns)
        slots = torch.arange(len(self.others), device=tokens.device)
        joins = (like.argmax(dim=-1, keepdim=True) == slots).to(torch.float32).transpose(1, 2)
        own = tokens.index_select(1, self.others).float()
        joined = torch.matmul(joins, tokens.index_select(1, self.leaving).float())
        out = ((own + joined) / (1 + joins.sum(dim=-1, keepdim=True))).to(tokens.dtype)
        places = self.others
        if not self.whole:
            out = torch.cat((out, tokens.index_select(1, self.rest)), dim=1)
            out = out.index_select(1, self.raster)
            places = torch.cat((places, self.rest)).index_select(0, self.raster)
        return out, places.unsqueeze(0).expand(tokens.shape[0], -1)
