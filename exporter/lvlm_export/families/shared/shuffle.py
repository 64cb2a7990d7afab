"""Towers whose patches are joined in cells, and pictures whose tiles follow one another.

A pixel shuffle takes cells of ``s x s`` patches to one token each, side by side in its channels; an
average pool takes their mean. Where patches come cell by cell the one is a view and the other a sum.
Source: arXiv:1609.05158; transformers 5.23, ``pixel_shuffle`` of ``models/internvl`` and
``models/idefics3``.
"""

from __future__ import annotations

from typing import Any

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


class CellEmbed(nn.Module):
    """``pixel_values [B, 3, H, W] -> [B, P+N*G, C]``: a tower's embedding, patches cell by cell.

    Args:
        embed: ``[B, 3, H, W] -> [B, P+N*G, C]``, patches in raster order.
        rows: Of the grid of patches.
        cell: Edge of a cell in patches.
        prefix: P.
    """

    def __init__(self, embed: nn.Module, rows: int, cell: int, prefix: int = 0) -> None:
        super().__init__()
        self.embed, self.rows, self.cell, self.prefix = embed, rows, cell, prefix

    def forward(self, pixel_values: Tensor, any_size: bool = False) -> Tensor:
        assert not any_size, "no method that reduces pictures fits"
        embedded: Tensor = self.embed(pixel_values)
        return cell_order(embedded, self.rows, self.cell, self.prefix)


class SiglipBlocks(nn.Module):
    """How SigLIP's and CLIP's blocks run where patches are joined in cells: see ``VisionBlocks``."""

    def rows(self, grid: Tensor) -> None:
        """Nothing: positions were added to the patches."""

    def attend(
        self, layer: Any, hidden: Tensor, bias: Tensor | None, rows: Any
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        out, weights = attention(hidden_states=normed, attention_mask=bias)
        heads = (*hidden.shape[:2], attention.num_heads, attention.head_dim)
        query, key = (
            each(normed).reshape(heads).transpose(1, 2)
            for each in (attention.q_proj, attention.k_proj)
        )
        return hidden + out, weights, query, key

    def feed_forward(self, layer: Any, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
        return result
