"""Cutting a model at a method's sites: the torch modules that become ONNX subgraphs.

The vision tower is cut inside a block, between the attention residual and the MLP; the decoder
between layers. A subgraph before a site also returns the query (after RoPE) of the layer whose
attention scores the tokens; in vision the key as well, in the decoder the key is in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_export.attention import CacheView, watch_attention
from lvlm_export.families import Parts
from lvlm_export.reduction import Site


@dataclass(frozen=True)
class VisionCut:
    """Half-open range of a vision subgraph.

    Attributes:
        index: Position in the chain.
        mlp_of: Layer whose MLP the subgraph starts with; None where it starts with a whole layer,
            the embedding (the first) or the projector.
        whole: Layers that lie in it whole, ``(first, last)``.
        site: The site that follows; None for the last, which ends with the projector.
    """

    index: int
    mlp_of: int | None
    whole: tuple[int, int]
    site: Site | None

    @property
    def name(self) -> str:
        return f"vision.{self.index}"

    @property
    def attention_of(self) -> int | None:
        """Layer whose attention it ends with; None where it ends with a whole layer."""
        inside = self.site is not None and self.site.stage == "vision"
        return self.site.layer if self.site is not None and inside else None


@dataclass(frozen=True)
class DecoderCut:
    """Layers ``[first, last)`` of a decoder subgraph; ``scored`` when a site follows."""

    index: int
    first: int
    last: int
    scored: bool

    @property
    def name(self) -> str:
        return f"decoder.{self.index}"


def cut_vision(layers: int, sites: Sequence[Site]) -> tuple[VisionCut, ...]:
    """Cuts of a tower of ``layers`` blocks at the sites before its projector, in order."""
    cuts: list[VisionCut] = []
    start: int | None = None
    first = 0
    for site in sites:
        if site.stage == "vision":
            cuts.append(VisionCut(len(cuts), start, (first, site.layer), site))
            start, first = site.layer, site.layer + 1
        elif site.stage == "features":
            assert first < layers, "the last layer must be whole, its attention scores the features"
            cuts.append(VisionCut(len(cuts), start, (first, layers), site))
            start, first = None, layers
    return (*cuts, VisionCut(len(cuts), start, (first, layers), None))


def cut_decoder(layers: int, sites: Sequence[Site]) -> tuple[DecoderCut, ...]:
    """Cuts of a decoder of ``layers`` layers at the inputs of the sites' layers."""
    at = [site.layer for site in sites if site.stage == "decoder"]
    bounds = [0, *at, layers]
    return tuple(
        DecoderCut(index, first, last, last != layers)
        for index, (first, last) in enumerate(itertools.pairwise(bounds))
    )


def attend(layer: Any, hidden: Tensor) -> Tensor:
    """First half of a vision block: ``hidden + attention(norm(hidden))``."""
    attended, _ = layer.self_attn(hidden_states=layer.layer_norm1(hidden), attention_mask=None)
    result: Tensor = hidden + attended
    return result


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """Second half of a vision block: ``hidden + mlp(norm(hidden))``."""
    result: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
    return result


class VisionSubgraph(nn.Module):
    """``pixel_values [B, 3, H, W]`` or ``hidden [B, T, C]`` -> the next site or the features.

    Returns ``(hidden, query, key)`` before a site, with query and key of the last attention in it,
    and ``(features,)`` at the end.
    """

    def __init__(self, parts: Parts, cut: VisionCut) -> None:
        super().__init__()
        layers = parts.vision_layers
        self.embed = parts.vision_embed if cut.index == 0 else None
        self.mlp_block = None if cut.mlp_of is None else layers[cut.mlp_of]
        self.blocks = layers[cut.whole[0] : cut.whole[1]]
        self.attention_block = None if cut.attention_of is None else layers[cut.attention_of]
        self.project = parts.project if cut.site is None else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        if self.embed is not None:
            hidden = self.embed(hidden)
        if self.mlp_block is not None:
            hidden = feed_forward(self.mlp_block, hidden)
        with watch_attention() as seen:
            for block in self.blocks:
                hidden = feed_forward(block, attend(block, hidden))
            if self.attention_block is not None:
                hidden = attend(self.attention_block, hidden)
        if self.project is not None:
            return (self.project(hidden),)
        query, key = seen[-1]
        return hidden, query, key


class DecoderSubgraph(nn.Module):
    """Decoder layers over a cache that is written in place.

    ``hidden [1, S, C]``, ``position_ids [1, S]``, ``write_index [1]``, ``kv_length [1]`` and the
    layers' caches -> hidden, (query,) and the caches.
    """

    def __init__(self, parts: Parts, cut: DecoderCut) -> None:
        super().__init__()
        self.cut = cut
        self.layers = parts.text_layers[cut.first : cut.last]
        self.rotary = parts.rotary

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_length: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        cache = CacheView(keys, values, self.cut.first, write_index, kv_length)
        rotary = self.rotary(hidden, position_ids)
        with watch_attention() as seen:
            for layer in self.layers:
                hidden = layer(
                    hidden,
                    attention_mask=None,
                    position_ids=position_ids,
                    past_key_values=cache,
                    position_embeddings=rotary,
                    kv_length=kv_length,
                )
        query = (seen[-1][0],) if self.cut.scored else ()
        return (hidden, *query, *cache.keys, *cache.values)


class LmHead(nn.Module):
    """Final norm and output projection of the last token: ``[1, S, C] -> [1, vocab]`` float32.

    Two-dimensional, so that the projection is a ``Gemm`` that takes a tied token table as it is.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.norm = parts.norm
        self.lm_head = parts.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(hidden[:, -1]))
        return logits.to(torch.float32)


class Assemble(nn.Module):
    """Text and visual embeddings in prompt order.

    ``text [1, T, C]``, ``visual [n, V, C]``, ``order [S]`` into the T text rows followed by the
    n*V visual ones -> ``[1, S, C]``.
    """

    def forward(self, text: Tensor, visual: Tensor, order: Tensor) -> Tensor:
        rows = torch.cat((text[0], visual.reshape(-1, text.shape[-1])), dim=0)
        return rows.index_select(0, order).unsqueeze(0)
