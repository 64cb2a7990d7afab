"""Cutting a model at a method's sites: the torch modules that become ONNX subgraphs.

The vision tower is cut inside a block, between the attention residual and the MLP; the decoder
between layers. A subgraph before a site also returns the query (after RoPE) of the layer whose
attention scores the tokens; in vision the key as well, in the decoder the key is in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Parts, VisionShape
from lvlm_export.graphs.attention import CacheView, causal_bias, seen_bias, watch_attention
from lvlm_export.graphs.windows import WholeWindows
from lvlm_export.plan.cuts import DecoderCut, VisionCut
from lvlm_export.reduction.tensors import (
    join_groups,
    repeat_groups,
    split_groups,
    window_bias,
)
from lvlm_runtime.bundle.manifest import SEEN_FROM, SEEN_TO, SIZE_BIAS


def attend(layer: Any, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
    """First half of a vision block: ``hidden + attention(norm(hidden))``.

    ``bias [B, 1, T, T]`` is added to the scores.
    """
    attended, _ = layer.self_attn(hidden_states=layer.layer_norm1(hidden), attention_mask=bias)
    result: Tensor = hidden + attended
    return result


def size_bias(sizes: Tensor) -> Tensor:
    """What is added to attention scores for tokens of ``sizes [B, T]``: ``[B, 1, T, T]``.

    The logarithm, so that a token weighs as much as the patches in it would (arXiv:2210.09461 §3).
    onnxruntime wants a row for every query.
    """
    rows = sizes.float().log().to(sizes.dtype)[:, None, None]
    return rows.expand(-1, -1, sizes.shape[1], -1)


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """Second half of a vision block: ``hidden + mlp(norm(hidden))``."""
    result: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
    return result


class VisionSubgraph(nn.Module):
    """``pixel_values [B, 3, H, W]`` or ``hidden [B, T, C]`` -> the next site or the features.

    ``sizes [B, T]``, where tokens stand for several patches, bias its attention, and ``grid
    [B, T, 2]`` is where they stand, for a tower whose attention asks. Where a merger joins groups of
    G patches, a token is a group and ``hidden [B, T, G*C]`` outside, a CLS token's row too.
    Returns ``(hidden, query, key)`` before a site, with query and key of the last attention in it, and
    ``(features,)`` at the end; behind them the planes ``[B, T, D]`` of layers that end in it.
    """

    def __init__(self, parts: Parts, cut: VisionCut, shape: VisionShape) -> None:
        super().__init__()
        layers = parts.vision_layers
        self.shape, self.steps = shape, parts.blocks
        self.embed = parts.vision_embed if cut.index == 0 else None
        self.any_size = cut.any_size
        self.mlp_block = None if cut.mlp_of is None else layers[cut.mlp_of]
        self.blocks = layers[cut.whole[0] : cut.whole[1]]
        self.attention_block = None if cut.attention_of is None else layers[cut.attention_of]
        self.project = parts.project if cut.site is None else None
        self.first, self.levels = cut.whole[0], parts.levels
        self.ran = {shape.planes[number]: parts.planes[number] for number in cut.planes}
        # Registered, so that what they hold is named.
        self.planes = nn.ModuleList(self.ran.values())
        self.last = cut.whole[1]
        # Before the first site every token is there. Scores at a site are of all pairs.
        self.windows = None
        if shape.window and shape.grid is not None and cut.index == 0:
            self.windows = WholeWindows(shape.grid, shape.window, group=shape.group)

    def forward(
        self, hidden: Tensor, sizes: Tensor | None = None, grid: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        group, prefix = self.shape.group, self.shape.prefix
        bias = None if sizes is None else size_bias(repeat_groups(sizes, group, prefix))
        rows = None if grid is None else self.steps.rows(grid)
        levels: dict[int, Tensor] = {}
        if self.embed is not None:
            hidden = self.embed(hidden, any_size=self.any_size)
        elif group > 1:
            hidden = split_groups(hidden, group, prefix)
        masks: dict[int, Tensor | None] = {0: bias}

        def attend_in(layer: int, block: Any, hidden: Tensor) -> Tensor:
            window = self.shape.window_at(layer)
            if window not in masks:
                assert grid is not None
                inside = window_bias(grid, window, group, hidden.dtype)
                # What is hidden stays hidden: the lowest number less a logarithm is no number.
                masks[window] = inside if bias is None else torch.where(inside < 0, inside, bias)
            if self.steps is None:
                return attend(block, hidden, masks[window])
            attended: Tensor = self.steps.attend(block, hidden, masks[window], rows)[0]
            return attended

        planes: list[Tensor] = []

        def give_plane(ran: int, hidden: Tensor) -> None:
            if ran in self.ran:
                planes.append(self.ran[ran](hidden))

        second = feed_forward if self.steps is None else self.steps.feed_forward
        if self.mlp_block is not None:
            hidden = second(self.mlp_block, hidden)
            give_plane(self.first, hidden)
        with watch_attention() as seen:
            for index, block in enumerate(self.blocks, start=self.first):
                if self.windows is not None and self.shape.window_at(index):
                    hidden = self.steps.attend(block, hidden, None, rows, self.windows)[0]
                else:
                    hidden = attend_in(index, block, hidden)
                hidden = second(block, hidden)
                give_plane(index + 1, hidden)
                if index + 1 in self.levels:
                    levels[index + 1] = hidden
            if self.attention_block is not None:
                hidden = attend_in(self.last, self.attention_block, hidden)
        if self.project is not None:
            if self.levels:
                hidden = torch.cat([levels[level] for level in self.levels], dim=-1)
            return (self.project(hidden), *planes)
        query, key = seen[-1]
        return hidden if group == 1 else join_groups(hidden, group, prefix), query, key, *planes


class ProjectorSubgraph(nn.Module):
    """A trained projector: ``features [B, N, L*C]`` -> visual tokens ``[B, K, D]``.

    Where it reads the question, ``query [1, 1, D]`` is the question's last row at the end of the
    decoder; the final norm is applied here.
    """

    def __init__(self, parts: Parts, reads_text: bool) -> None:
        super().__init__()
        assert parts.projector is not None
        self.projector = parts.projector
        self.norm = parts.norm if reads_text else None

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        if self.norm is not None:
            query = self.norm(query)
        visual: Tensor = self.projector(features, query)
        return visual


class DecoderSubgraph(nn.Module):
    """Decoder layers over a cache that is written in place.

    ``hidden [1, S, C]``, ``position_ids [R, S]``, ``write_index [1]``, ``kv_length [1]``, the
    layers' caches, for every layer that adds one its plane ``[1, S, C]``, zero where text stands,
    and what its masks are made of: where attention counts the patches that a token stands for, their
    logarithm for every row of the caches, ``size_bias [1, cache]``, where a row sees others than
    those before it, ``seen_to [S]``, and where layers have a window, ``seen_from [S]`` -> hidden,
    (query,) and the caches.
    """

    def __init__(self, parts: Parts, cut: DecoderCut) -> None:
        super().__init__()
        self.cut = cut
        self.layers = parts.text_layers[cut.first : cut.last]
        self.rotary = parts.rotary
        self.local_rotary = parts.local_rotary or parts.rotary

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_length: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        planes: list[Tensor],
        rows: list[Tensor],
    ) -> tuple[Tensor, ...]:
        bias, added = None, dict(zip(self.cut.planes, planes, strict=True))
        given = dict(zip(self.cut.rows, rows, strict=True))
        sizes = given.get(SIZE_BIAS)
        local_bias, local_rotary = None, None
        if SEEN_TO in given:
            bias = seen_bias(given[SEEN_TO], keys[0], sizes)
            if SEEN_FROM in given:
                local_bias = seen_bias(given[SEEN_TO], keys[0], sizes, given[SEEN_FROM])
                local_rotary = self.local_rotary(hidden, position_ids)
        elif sizes is not None:
            bias = causal_bias(sizes, write_index, hidden.shape[1])
        cache = CacheView(keys, values, self.cut.first, write_index, kv_length)
        rotary = self.rotary(hidden, position_ids)
        with watch_attention() as seen:
            for index, layer in enumerate(self.layers, start=self.cut.first):
                local = index in self.cut.windowed
                hidden = layer(
                    hidden,
                    attention_mask=local_bias if local else bias,
                    position_ids=position_ids,
                    past_key_values=cache,
                    position_embeddings=local_rotary if local else rotary,
                    kv_length=kv_length,
                )
                if index in added:
                    hidden = hidden + added[index]
        query = (seen[-1][0],) if self.cut.scored else ()
        return (hidden, *query, *cache.keys, *cache.values)


class LmHead(nn.Module):
    """Final norm and output projection: ``[1, S, C] -> [S, V]`` float32.

    The runtime gives it the rows whose logits it needs: the last one of a prompt, every one where
    drafts are verified.

    Two-dimensional, so that the projection is a ``Gemm`` that takes a tied token table as it is.
    ``rows`` are the words ``[first, last)`` that this head gives logits for. The projection is cut
    in the graph and not here, so that the weight file holds it once (``fold_weight_slices``).
    """

    def __init__(self, parts: Parts, rows: tuple[int, int]) -> None:
        super().__init__()
        self.norm = parts.norm
        self.lm_head = parts.lm_head
        self.rows = rows

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)[0]
        first, end = self.rows
        if end - first == self.lm_head.out_features:
            logits: Tensor = self.lm_head(normed)
            return logits.to(torch.float32)
        assert self.lm_head.bias is None, "no supported family has a bias in its head"
        return nn.functional.linear(normed, self.lm_head.weight[first:end]).to(torch.float32)


class Assemble(nn.Module):
    """Text and visual embeddings in prompt order.

    ``text [1, T, C]``, ``visual [n, V, C]``, ``order [S]`` into the T text rows followed by the
    n*V visual ones -> ``[1, S, C]``.
    """

    def forward(self, text: Tensor, visual: Tensor, order: Tensor) -> Tensor:
        rows = torch.cat((text[0], visual.reshape(-1, text.shape[-1])), dim=0)
        return rows.index_select(0, order).unsqueeze(0)
