"""Groups around constant places: one product of keys, one ArgMax, one one-hot product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_export.reduction.selectors import Clue, Clues, Selector
from lvlm_export.reduction.tensors import cosine, squared_steps

ITSELF = 4.0  # above every difference of two cosines


class JoinAnchors(Selector):
    """Every token joins one of K given places; returns the sizes as well.

    Args:
        grid: Rows and columns of the N tokens.
        places: The K raster places that stay, ascending.
        penalty: What a squared step of distance takes from the cosine of two keys.
    """

    needs: frozenset[Clue] = frozenset({"keys", "sizes"})
    places: Tensor

    def __init__(self, grid: tuple[int, int], places: Sequence[int], penalty: float) -> None:
        super().__init__()
        self.grid, self.penalty = grid, penalty
        self.register_buffer("places", torch.tensor(list(places)), persistent=False)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor, Tensor]:
        assert clues.keys is not None
        assert clues.sizes is not None
        sizes = clues.sizes.float()
        like = cosine(clues.keys, clues.keys.index_select(1, self.places)) + self._nearness()
        slots = torch.arange(len(self.places), device=tokens.device)
        joins = (like.argmax(dim=-1, keepdim=True) == slots).to(torch.float32).transpose(1, 2)
        size = torch.matmul(joins, sizes.unsqueeze(-1))
        merged = torch.matmul(joins, sizes.unsqueeze(-1) * tokens.float()) / size
        places = self.places.unsqueeze(0).expand(tokens.shape[0], -1)
        return merged.to(tokens.dtype), places, size.squeeze(-1).to(clues.sizes.dtype)

    def _nearness(self) -> Tensor:
        """``[N, K]``, added to the cosines. Computed, because a constant would be K x N numbers."""
        rows, columns = self.grid
        every = torch.arange(rows * columns, device=self.places.device).unsqueeze(1)
        apart = squared_steps(every, self.places, columns)
        # An anchor joins itself, though another may have the same key.
        return ITSELF * (apart == 0).to(torch.float32) - self.penalty * apart
