"""Towers whose patches a pixel shuffle joins, and pictures whose tiles follow one another.

A pixel shuffle takes cells of ``s x s`` patches to one token each, side by side in its channels.
Where patches come cell by cell it is a view.
Source: arXiv:1609.05158; transformers 5.23, ``pixel_shuffle`` of ``models/internvl`` and
``models/idefics3``.
"""

from __future__ import annotations

from torch import Tensor, cat, nn


def cell_order(patches: Tensor, rows: int, cell: int, prefix: int = 0) -> Tensor:
    """Patches in raster order ``[B, P+N, C]`` as patches cell by cell; the prefix stays in front.

    Args:
        patches: Prefix rows and the patches.
        rows: Of the grid of patches; cells divide its edges.
        cell: Edge of a cell in patches.
        prefix: P.
    """
    if prefix:
        inner = cell_order(patches[:, prefix:], rows, cell)
        return cat((patches[:, :prefix], inner), dim=1)
    images, count, width = patches.shape
    cols = count // rows
    grid = patches.reshape(images, rows // cell, cell, cols // cell, cell, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(images, count, width)


class JoinTiles(nn.Module):
    """Tokens of an image's tiles one behind the other: ``[n*T, K, D] -> [n, T*K, D]``.

    With their ``sizes [n*T, K]`` as a second argument it gives those of its tokens as well.
    """

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.tiles = tiles

    def forward(
        self, features: Tensor, sizes: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        count = self.tiles * features.shape[1]
        joined = features.reshape(-1, count, features.shape[-1])
        return joined if sizes is None else (joined, sizes.reshape(-1, count))
