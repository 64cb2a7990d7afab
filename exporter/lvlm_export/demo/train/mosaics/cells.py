"""What the tower of the mosaics' model is trained with: what each cell shows."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvlm_export.demo.questions import PLACES
from lvlm_export.demo.train.mosaics.batches import Batch
from lvlm_export.demo.train.mosaics.mosaic import CELL_EDGES, IMAGE_SIZE
from lvlm_export.demo.train.mosaics.tiles import COLORS, SHAPES
from lvlm_export.demo.train.processor import PATCH_SIZE


class CellHeads(nn.Module):
    """Reads a cell's shape and colour from its patches together, and its place from each patch.

    Only used to warm the vision tower up; the checkpoint does not contain it.

    Args:
        width: Of the features, C.
        side: Patches along a picture's edge; P = side² below.
    """

    pooling: Tensor
    patch_cells: Tensor

    def __init__(self, width: int, side: int = IMAGE_SIZE // PATCH_SIZE) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.place = nn.Linear(width, len(PLACES))
        self.register_buffer("pooling", _cell_pooling(side))
        self.register_buffer("patch_cells", self.pooling.argmax(dim=0))

    def cell_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy and the share of cells with shape and colour right (both scalars).

        Args:
            features: Vision features ``[B, P, width]``.
            batch: The batch with the labels.
        """
        pooled = self.pooling @ self.norm(features.float())
        shapes, colors = self.shape(pooled).float(), self.color(pooled).float()
        loss = functional.cross_entropy(shapes.flatten(0, 1), batch.cell_shapes.flatten())
        loss = loss + functional.cross_entropy(colors.flatten(0, 1), batch.cell_colors.flatten())
        right = (shapes.argmax(-1) == batch.cell_shapes) & (colors.argmax(-1) == batch.cell_colors)
        return loss, right.float().mean()

    def place_loss(self, features: Tensor) -> Tensor:
        """Mean cross entropy of each patch's cell, given features ``[B, P, width]``."""
        places = self.place(self.norm(features.float())).float()
        return functional.cross_entropy(
            places.flatten(0, 1), self.patch_cells.repeat(len(features))
        )

    def patch_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """As ``cell_loss``, but every single patch names its cell's shape, colour and place."""
        normed = self.norm(features.float())
        shapes, colors = self.shape(normed).float(), self.color(normed).float()
        right_shapes = batch.cell_shapes[:, self.patch_cells]
        right_colors = batch.cell_colors[:, self.patch_cells]
        loss = functional.cross_entropy(shapes.flatten(0, 1), right_shapes.flatten())
        loss = loss + functional.cross_entropy(colors.flatten(0, 1), right_colors.flatten())
        right = (shapes.argmax(-1) == right_shapes) & (colors.argmax(-1) == right_colors)
        return loss + self.place_loss(features), right.float().mean()


def _cell_pooling(side: int) -> Tensor:
    """``[9, side²]``: each cell's mean over its patches, weighted by the part of a patch inside."""
    edges = torch.arange(side + 1) * (IMAGE_SIZE / side)
    starts, ends = edges[:-1], edges[1:]
    overlaps = torch.stack(
        [ends.clamp(max=end) - starts.clamp(min=begin) for begin, end in pairwise(CELL_EDGES)]
    ).clamp(min=0)
    area = torch.einsum("ri,cj->rcij", overlaps, overlaps).flatten(2).flatten(0, 1).float()
    return area / area.sum(dim=1, keepdim=True)
