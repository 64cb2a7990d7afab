"""Families that put a picture's tiles back together as a grid ("anyres"): packers and canvases.

Source: transformers 5.23, ``pack_image_features`` of ``models/llava_next`` and
``models/llava_onevision``; they differ in the shrink of "anyres_max_N" alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class TilePacker(nn.Module, ABC):
    """Projected tiles as an image's tokens, and their sizes the same way.

    ``features [B, K, D]``, and where the decoder counts the patches that a token stands for their
    ``sizes [B, K]`` too. A newline is one token; where the map is shrunk, a size is interpolated as
    the features are, so that tokens of which nothing was merged stay of size 1.
    """

    def __init__(self, newline: nn.Parameter) -> None:
        super().__init__()
        self.newline = newline

    @abstractmethod
    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        """Tokens in their order; ``newline [D]``."""

    def forward(
        self, features: Tensor, sizes: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        packed = self.pack(features, self.newline)
        if sizes is None:
            return packed
        rows = self.pack(sizes.unsqueeze(-1), torch.ones_like(self.newline[:1]))
        return packed, rows.squeeze(-1)


class SinglePacker(TilePacker):
    """Base view, then the tiles' joint map without its padding, a newline after every row.

    ``features [tiles, K, D] -> [1, V, D]``.
    """

    def __init__(
        self, newline: nn.Parameter, layout: TileLayout, kept: int, max_patches: int | None
    ) -> None:
        super().__init__(newline)
        self.layout = layout
        self.side = math.isqrt(kept)
        self.max_patches = max_patches

    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        side, width = self.side, features.shape[-1]
        rows, cols, row0, col0 = anyres.unpadded_grid(self.layout, side)
        grid = (self.layout.grid_rows, self.layout.grid_cols)
        tiles = features[1:].reshape(*grid, side, side, width)
        joint = tiles.permute(0, 2, 1, 3, 4).reshape(grid[0] * side, grid[1] * side, width)
        joint = joint.narrow(0, row0, rows).narrow(1, col0, cols)
        shrunk = anyres.max_patches_shape(rows, cols, side, self.max_patches)
        if shrunk != (rows, cols):
            channels_first = joint.permute(2, 0, 1).unsqueeze(0)
            resized = nn.functional.interpolate(channels_first, shrunk, mode="bilinear")
            joint = resized[0].permute(1, 2, 0)
        ends = newline.expand(joint.shape[0], 1, width)
        lines = torch.cat((joint, ends), dim=1).reshape(-1, width)
        return torch.cat((features[0], lines), dim=0).unsqueeze(0)


class MultiPacker(TilePacker):
    """One view per picture and a newline after it: ``features [n, K, D] -> [n, K+1, D]``."""

    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        ends = newline.expand(features.shape[0], 1, features.shape[-1])
        return torch.cat((features, ends), dim=1)


def canvases(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Canvases (height, width) in pixels of ``image_grid_pinpoints``, at most 64 tiles each way.

    Raises:
        LvlmError: Anything else.
    """
    tile, pairs = config.vision_config.image_size, config.image_grid_pinpoints
    for pair in pairs:
        edges = pair if isinstance(pair, list | tuple) and len(pair) == 2 else ()
        if not edges or not all(type(edge) is int and 0 < edge <= 64 * tile for edge in edges):
            raise LvlmError(
                f"image_grid_pinpoints of config.json has {pair!r}, [height, width] in pixels is"
                f" needed, at most 64 tiles of {tile} each way"
            )
    if not pairs:
        raise LvlmError("image_grid_pinpoints of config.json is empty; give [height, width] pairs")
    return [(height, width) for height, width in pairs]
