"""The tower in plain PyTorch with tokens dropped after some layers' attention; only gates use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""Attention received ``[B, N]`` and original places ``[B, N]`` to what to keep the highest of."""

Visit = Callable[[int, Tensor, Tensor], Tensor]
"""A layer's number, hidden states and attention received, to the hidden states to go on with."""


def walk_tower(tower: Any, pixels: Tensor, visit: Visit) -> Tensor:
    """Run the tower, stopping in each layer between attention and MLP.

    Args:
        tower: A SigLIP tower.
        pixels: float32 ``[B, 3, H, W]``.
        visit: Gets the layer's number, counted from 0, hidden states ``[B, N, C]`` and attention
            received ``[B, N]``, the mean over heads and queries; returns the states to go on with.

    Returns:
        The last layer's output ``[B, K, C]``.
    """
    hidden: Tensor = tower.embeddings(pixels)
    for number, layer in enumerate(tower.encoder.layers):
        normed, attention = layer.layer_norm1(hidden), layer.self_attn
        query, key, value = (
            part(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (query @ key.mT * attention.scale).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        hidden = visit(number, hidden + attention.out_proj(mixed), weights.mean(dim=(1, 2)))
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden


def reduced_features(
    tower: Any, pixels: Tensor, sites: Mapping[int, int], score: Score
) -> tuple[Tensor, Tensor]:
    """Run the tower and drop the tokens that score lowest.

    Args:
        tower: A SigLIP tower.
        pixels: float32 ``[B, 3, H, W]``.
        sites: Layer, counted from 0, to how many tokens stay after its attention.
        score: What to keep the highest of.

    Returns:
        Features ``[B, K, C]`` and the places ``[B, K]`` they came from, in raster order.
    """
    places = torch.empty(0)

    def drop(layer: int, hidden: Tensor, received: Tensor) -> Tensor:
        nonlocal places
        if not layer:
            places = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
        if layer not in sites:
            return hidden
        kept = score(received, places).topk(sites[layer], dim=-1).indices.sort(dim=-1).values
        places = places.gather(1, kept)
        return rows_of(hidden, kept)

    return walk_tower(tower, pixels, drop), places


def rows_of(tokens: Tensor, kept: Tensor) -> Tensor:
    """Tokens ``[B, K, C]`` at the places ``[B, K]`` of ``[B, N, C]``."""
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
