"""Local's matching: as ToMe's, with whole keys and a penalty on the distance of the places."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.selectors.tome import merge_best_pairs
from lvlm_export.reduction.tensors import cosine, squared_steps


class MergeNear(Selector):
    """The r best pairs become size-weighted means; returns sizes and origins as well.

    Args:
        shape: Of the site. Where nothing has left yet, the places are known and the sets are the
            colours of a checkerboard; else the origins are a clue.
        grid: Rows and columns of a tile's patches.
        penalty: What a squared step of distance takes from the cosine of two keys.
    """

    gives_origins = True
    every: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, shape: ReducerShape, grid: tuple[int, int], penalty: float) -> None:
        super().__init__()
        rows, columns = grid
        self.columns, self.penalty = columns, penalty
        self.removed = shape.tokens_in - shape.tokens_out
        self.whole = shape.tokens_in == rows * columns
        clues: set[Clue] = {"keys", "sizes"} if self.whole else {"keys", "sizes", "origins"}
        self.needs = frozenset(clues)
        places = torch.arange(shape.tokens_in)
        parity = (places // columns + places % columns) % 2 if self.whole else places % 2
        self.register_buffer("every", places, persistent=False)
        self.register_buffer("first", places[parity == 0], persistent=False)
        self.register_buffer("second", places[parity == 1], persistent=False)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert clues.keys is not None
        assert clues.sizes is not None
        stood = clues.origins
        if stood is None:
            # Constants: TensorRT-RTX 1.7 fails to compile places repeated for a fixed number of tiles.
            one, other = self.first.unsqueeze(0), self.second.unsqueeze(0)
        else:
            one, other = self._one(stood), self._other(stood)
        like = cosine(self._one(clues.keys), self._other(clues.keys))
        like = like - self.penalty * squared_steps(
            one.unsqueeze(2), other.unsqueeze(1), self.columns
        )
        sets = (self._one, self._other)
        out, places, sizes = merge_best_pairs(tokens, clues.sizes, like, sets, self.removed)
        if stood is None:
            # The same numbers as a value of its own: a graph's outputs have one name each.
            came = self.every.index_select(0, places.flatten()).reshape(places.shape)
        else:
            came = stood.gather(1, places)
        return out, places, sizes, came

    def _one(self, rows: Tensor) -> Tensor:
        return rows.index_select(1, self.first)

    def _other(self, rows: Tensor) -> Tensor:
        return rows.index_select(1, self.second)
