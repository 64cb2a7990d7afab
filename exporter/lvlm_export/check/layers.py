"""Layers of an eager Hugging Face model, one or several at a time, with what reducers ask of them.

The reference runs a request through them, and ``lvlm-export tune`` many at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lvlm_export.check.clues import Projections, watch_projections
from lvlm_export.families import Parts, VisionShape
from lvlm_export.graphs.subgraphs import feed_forward
from lvlm_export.reduction.tensors import join_groups, repeat_groups, split_groups
from lvlm_runtime.bundle.manifest import CAUSAL, PREFIX
from lvlm_runtime.prompt.sequence import Origins, Placed


def vision_attention(
    layer: Any, hidden: Tensor, sizes: Tensor | None
) -> tuple[Tensor, Tensor, Projections]:
    """First half of a vision block: the states after it, its weights and its projections.

    Args:
        layer: The block.
        hidden: ``[B, T, C]``.
        sizes: ``[B, T]``, how many patches each token stands for, where attention counts them.

    Returns:
        ``hidden + attention [B, T, C]``, weights ``[B, H, T, T]``, and the projections.
    """
    bias = None if sizes is None else sizes.log()[:, None, None]
    with watch_projections(layer.self_attn) as projections:
        attended, weights = layer.self_attn(
            hidden_states=layer.layer_norm1(hidden), attention_mask=bias
        )
    return hidden + attended, weights, projections


def grouped_attention(
    parts: Parts,
    shape: VisionShape,
    index: int,
    hidden: Tensor,
    sizes: Tensor | None,
    grid: Tensor | None,
) -> tuple[Tensor, Tensor, Projections, Tensor | None]:
    """As ``vision_attention``, of a tower with blocks of its own and groups of patches.

    Args:
        parts: The model.
        shape: Its tower's.
        index: The layer.
        hidden: ``[B, P+N, G*C]``.
        sizes: ``[B, P+N]``, where attention counts them.
        grid: ``[B, N, 2]``, row and column of every group, where attention asks.

    Returns:
        As ``vision_attention``, and what its windows add to scores.
    """
    group, prefix = shape.group, shape.prefix
    patches = split_groups(hidden, group, prefix)
    window, bias, inside = shape.window_at(index), None, None
    if window:
        assert grid is not None
        cell = (grid // window).repeat_interleave(group, dim=1)
        apart = (cell[:, :, None] != cell[:, None]).any(dim=-1)
        inside = torch.zeros(apart.shape).masked_fill(apart, -torch.inf)[:, None]
    if sizes is not None:
        bias = repeat_groups(sizes.log(), group, prefix)[:, None, None]
    added = inside if bias is None else bias if inside is None else bias + inside
    blocks = parts.blocks
    layer = parts.vision_layers[index]
    rows = None if grid is None else blocks.rows(grid)
    out, weights, query, key = blocks.attend(layer, patches, added, rows)
    assert weights is not None
    seen = {"q_proj": query.transpose(1, 2).flatten(2), "k_proj": key.transpose(1, 2).flatten(2)}
    return join_groups(out, group, prefix), weights, Projections(seen), inside


def grouped_feed_forward(parts: Parts, shape: VisionShape, index: int, hidden: Tensor) -> Tensor:
    """Second half of a vision block of any build: ``[B, P+N, G*C]`` in and out."""
    layer = parts.vision_layers[index]
    if parts.blocks is None:
        return feed_forward(layer, hidden)
    patches = split_groups(hidden, shape.group, shape.prefix)
    out: Tensor = parts.blocks.feed_forward(layer, patches)
    return join_groups(out, shape.group, shape.prefix)


@dataclass(frozen=True)
class LocalLayers:
    """Decoder layers whose attention has a window.

    Attributes:
        layers: Which.
        window: Positions that a row sees, its own included.
        positions: ``[R + S]`` of the rows of the cache, the new ones included.
    """

    layers: tuple[int, ...]
    window: int
    positions: Tensor


class Filled:
    """A cache whose new rows have been written before."""

    def __init__(self, cache: DynamicCache) -> None:
        self.cache = cache

    def update(self, _key: Tensor, _value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """What it holds ``[1, Hkv, S, D]``; called by the layer."""
        held = self.cache.layers[layer]
        return held.keys, held.values


def decoder_layers(
    parts: Parts,
    hidden: Tensor,
    positions: Tensor,
    cache: DynamicCache,
    layers: range,
    weights: list[Tensor] | None,
    bias: Tensor | None = None,
    planes: Mapping[int, Tensor] | None = None,
    blocks: Tensor | None = None,
    local: LocalLayers | None = None,
) -> Tensor:
    """Run decoder layers on rows that stand behind what a cache holds.

    Args:
        parts: The model.
        hidden: ``[B, S, C]``.
        positions: ``[B, S]``, or ``[R, S]`` of one request or ``[R, B, S]`` in a model of R positions
            a token.
        cache: Of these layers, all with the same number of rows R where S is above 1.
        layers: Which.
        weights: Collects the last one's attention ``[B, H, S, R + S]``.
        bias: ``[B, R + S]``, added to the scores of every row of the cache, the new ones included;
            None for a decoder that counts no sizes.
        planes: Layer -> ``[B, S, C]``, added to the rows behind it.
        blocks: ``[S]``, of rows that are a whole prompt: those of the same block, 0 or above, see one
            another, beside what is before them.
        local: Layers with a window; None in a model of none.
    """
    length = hidden.shape[1]
    mask = None if bias is None else bias[:, None, None]
    if length > 1:
        held = cache.get_seq_length(layers[0])
        causal = torch.full((length, held + length), torch.finfo(torch.float32).min)
        causal = causal.triu(1 + held)[None, None]
        if blocks is not None:
            assert not held, "blocks are those of a whole prompt"
            together = (blocks[:, None] == blocks) & (blocks >= 0)
            causal = causal.masked_fill(together, 0)
        mask = causal if mask is None else causal + mask
    rotary = parts.rotary(hidden, positions)
    local_mask, local_rotary = None, None
    if local is not None:
        rows = local.positions
        near = rows > rows[-length:, None] - local.window
        local_mask = torch.zeros(near.shape) if mask is None else mask
        local_mask = local_mask.masked_fill(~near, torch.finfo(torch.float32).min)
        assert parts.local_rotary is not None
        local_rotary = parts.local_rotary(hidden, positions)
    for index in layers:
        near_by = local is not None and index in local.layers
        layer = parts.text_layers[index]
        handle = None
        collected = weights if index == layers[-1] else None
        given: dict[str, Any] = {}
        if collected is not None and near_by:
            handle = layer.self_attn.register_forward_pre_hook(
                lambda _module, _inputs, words, given=given: given.update(words), with_kwargs=True
            )
        elif collected is not None:
            handle = layer.self_attn.register_forward_hook(
                lambda _module, _inputs, output, into=collected: into.append(output[1])
            )
        hidden = layer(
            hidden,
            attention_mask=local_mask if near_by else mask,
            position_ids=positions,
            past_key_values=cache,
            position_embeddings=local_rotary if near_by else rotary,
        )
        if handle is not None:
            handle.remove()
        if given and collected is not None:
            # A window hides tokens from a row that the ranking asks: they are scored without it.
            whole = given | {"attention_mask": mask, "past_key_values": Filled(cache)}
            collected.append(layer.self_attn(**whole)[1])
        if planes is not None and index in planes:
            hidden = hidden + planes[index]
    return hidden


def blocks_of(attention: str, placed: Placed) -> Tensor | None:
    """``[S]``, the block of every row of a prompt; rows of a block see one another. None for no blocks.

    Args:
        attention: As ``TextShape`` has it.
        placed: Where text and images stand.
    """
    count = len(placed.order)
    if attention == CAUSAL:
        return None
    if attention == PREFIX:
        return torch.zeros(count, dtype=torch.int64)
    blocks = torch.full((count,), -1)
    blocks[torch.from_numpy(placed.visual)] = torch.arange(len(placed.visual))[:, None]
    return blocks


def spread(plane: Tensor, placed: Placed) -> Tensor:
    """A plane ``[n, V, C]`` at the rows of the visual tokens, zero at the text's: ``[1, S, C]``."""
    rows = torch.zeros(len(placed.order), plane.shape[-1])
    rows[torch.from_numpy(placed.visual)] = plane
    return rows[None]


def grid_of(origins: Origins, vision: VisionShape) -> Tensor:
    """Row and column ``[B, N, 2]`` of the groups at their places in the picture."""
    assert vision.grid is not None
    offsets = torch.from_numpy(origins.offsets)
    return torch.stack((offsets // vision.grid[1], offsets % vision.grid[1]), dim=-1)
