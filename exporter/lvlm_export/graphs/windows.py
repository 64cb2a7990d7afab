"""Attention inside the windows of a whole picture, window by window and not by a mask.

A mask over all pairs costs what attention to the whole picture costs. As long as no token has left, the
windows are known when a graph is made: their rows are taken out, attend to each other as pictures of
their own, and go back. Windows at an edge are smaller and are filled up with rows that nobody sees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WholeWindows(nn.Module):
    """The windows of a picture of which nothing was taken out.

    Args:
        grid: Rows and columns of the picture's groups.
        window: Edge of a window in groups.
        group: G, patches in a group, one behind the other.

    Example:
        >>> WholeWindows((2, 3), 2, 1).order.tolist()
        [[0, 1, 3, 4], [2, 5, 0, 0]]
    """

    order: Tensor
    back: Tensor
    hidden: Tensor

    def __init__(self, grid: tuple[int, int], window: int, group: int) -> None:
        super().__init__()
        rows, columns = grid
        cells: dict[tuple[int, int], list[int]] = {}
        for place in range(rows * columns):
            cell = place // columns // window, place % columns // window
            cells.setdefault(cell, []).extend(range(place * group, (place + 1) * group))
        longest = max(map(len, cells.values()))
        order = torch.zeros((len(cells), longest), dtype=torch.int64)
        hidden = torch.ones((len(cells), longest), dtype=torch.bool)
        for number, inside in enumerate(cells.values()):
            order[number, : len(inside)] = torch.tensor(inside)
            hidden[number, : len(inside)] = False
        back = torch.empty(rows * columns * group, dtype=torch.int64)
        back[order[~hidden]] = torch.arange(order.numel()).reshape(order.shape)[~hidden]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", back, persistent=False)
        self.register_buffer("hidden", hidden, persistent=False)
        self.filled = bool(hidden.any())

    def split(self, rows: Tensor) -> Tensor:
        """``[B, H, T, D]`` as ``[B*W, H, L, D]``, L rows in each of the W windows."""
        images, heads, _, width = rows.shape
        windows, length = self.order.shape
        taken = rows.index_select(2, self.order.flatten())
        apart = taken.reshape(images, heads, windows, length, width).transpose(1, 2)
        return apart.reshape(-1, heads, length, width)

    def bias(self, images: int, dtype: torch.dtype) -> Tensor | None:
        """What hides the rows that fill windows up: ``[B*W, 1, L, L]``; None where there are none."""
        if not self.filled:
            return None
        length = self.order.shape[1]
        shown = torch.zeros((), dtype=dtype, device=self.hidden.device)
        row = torch.where(self.hidden, torch.finfo(dtype).min, shown)
        whole = row[None, :, None, None].expand(images, -1, -1, length, -1)
        return whole.reshape(-1, 1, length, length)

    def join(self, rows: Tensor, images: int) -> Tensor:
        """Attention's ``[B*W, L, H, D]`` as ``[B, T, H, D]``."""
        joined = rows.reshape(images, -1, *rows.shape[2:])
        return joined.index_select(1, self.back)
