"""An area resize of square pictures as two products with one small constant matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clues, Selector


def area_weights(before: int, after: int) -> Tensor:
    """``[after, before]`` float32: the share of each old pixel in the area of each new one."""
    size = before / after
    start = torch.arange(after, dtype=torch.float64).unsqueeze(1) * size
    pixel = torch.arange(before, dtype=torch.float64).unsqueeze(0)
    overlap = torch.minimum(start + size, pixel + 1) - torch.maximum(start, pixel)
    return (overlap.clamp_min(0.0) / size).to(torch.float32)


def centre_places(before: int, after: int) -> list[int]:
    """Raster places, in a grid of edge ``before``, at the centres of one of edge ``after``."""
    at = [(2 * index + 1) * before // (2 * after) for index in range(after)]
    return [row * before + column for row in at for column in at]


class AreaResize(Selector):
    """``pixels [B, 3, H, H]`` -> ``[B, 3, h, h]`` and the places ``[B, K]`` of its patches.

    Edges have common factors, so the matrix repeats itself along the diagonal; one block of at most
    a few hundred numbers serves the whole picture.
    """

    weights: Tensor
    places: Tensor

    def __init__(self, shape: ReducerShape) -> None:
        super().__init__()
        before, after = math.isqrt(shape.tokens_in), math.isqrt(shape.tokens_out)
        common = math.gcd(before, after)
        self.block, self.shrunk = before // common, after // common
        self.register_buffer("weights", area_weights(self.block, self.shrunk), persistent=False)
        places = torch.tensor(centre_places(before, after))
        self.register_buffer("places", places, persistent=False)

    def forward(self, tokens: Tensor, clues: Clues) -> tuple[Tensor, Tensor]:
        edge = tokens.shape[2]
        small = edge // self.block * self.shrunk
        rows = torch.matmul(self.weights, tokens.float().reshape(-1, self.block, edge))
        columns = torch.matmul(rows.reshape(-1, self.block), self.weights.T)
        pixels = columns.reshape(-1, 3, small, small).to(tokens.dtype)
        return pixels, self.places.unsqueeze(0).expand(tokens.shape[0], -1)
