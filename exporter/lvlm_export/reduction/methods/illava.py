"""iLLaVA, as its authors publish it now: what is attended least is recycled into the weakest that stay.

Source: arXiv:2412.06263 (ICLR 2026) and the authors' code (hulianyuyy/iLLaVA @d4e221b3 and @cc1fe4ae,
``modeling_qwen3_vl.py``, ``vit_mode`` and ``llm_mode`` 3); shared METHODS §2.6. ``illava_v1`` is the
form of January 2025, which was called ``illava`` here before.

At a site, tokens are ranked by the attention they receive: in the vision encoder the mean over heads
and queries, in the decoder the last text token's row in the layer before. The first K stay. The last
``max(1, round(0.05 K))`` of them, the recycling tokens, take in what leaves: each adds to itself the
softmax-weighted mean of the five leaving tokens whose product with it is largest (products over the
square root of the width, hidden states as they are) and is halved. The others stay untouched, all in
raster order.

Published hyper-parameters (the authors' README): vision layers 5-6-7-8 keep 0.85 each, decoder layers
19-21-23-25 keep 0.9 each, which is 0.85⁴ · 0.9⁴ = 0.3425. ``--ratio 0.3425`` on LLaVA-OneVision-7B
(26 vision layers, 28 decoder layers, 729 tokens) is therefore 729 → 620 → 527 → 448 → 381 → 343 → 309
→ 278 → 250. Another ratio keeps the split of the log-ratio, 4 ln 0.85 before the decoder and 4 ln 0.9
in it (0.607 and 0.393), in equal steps of the logarithm inside each. Another depth has the sites at
the same fractions of it; fractions that round to one layer become one site, and a decoder site is at
layer 1 at the earliest, which has a layer before it to score the tokens, and at the last layer at the
latest. Where a model packs its tiles as squares, a tile keeps the nearest square (729 → 400).

What the authors' files disagree on, and what is done here:

- Their script and an older README (``run_inference_once_qwen3vl.py``) have 0.90 in the vision encoder
  and decoder layers 15-17-19-21 with 0.85; the README's values are taken. ``--sites`` has others.
- ``illava_vit_r`` and ``illava_llm_r`` are shares that are KEPT, though the papers' r are tokens that
  leave.
- They run on Qwen3-VL-8B, whose decoder has 36 layers, and give the layers as numbers. They are taken
  here as layers of 28, as the earlier release's were; on 36 that is 24-27-30-32.
- Their only attention path is FlashAttention's, of which they take the second return value for the
  attention: it is ``softmax_lse``, the logarithm of each query's softmax sum. Here it is attention.
- With Qwen's merge groups of four patches they keep every group that holds a kept patch, so the count
  depends on the picture. A static count ranks groups by their mean score and keeps K groups
  (``RecycleRedundant(group=4)``); no family here needs it yet.
- Their decoder positions are the kept tokens' own, as here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

# LLaVA-OneVision-7B's depths.
VISION_DEPTH, DECODER_DEPTH = 26, 28
VISION_LAYERS, DECODER_LAYERS = (5, 6, 7, 8), (19, 21, 23, 25)
# What stays at each of them.
VISION_KEEP, DECODER_KEEP = 0.85, 0.9


def published_sites(vision_layers: int, text_layers: int) -> tuple[Site, ...]:
    """The published sites, moved to the same fractions of other depths.

    Example:
        >>> [site.name for site in published_sites(12, 6)]
        ['vision@2', 'vision@3', 'vision@4', 'decoder@4', 'decoder@5']
    """
    return (
        *vision_sites(VISION_LAYERS, vision_layers),
        *decoder_sites(DECODER_LAYERS, text_layers),
    )


def vision_sites(layers: Sequence[int], depth: int) -> tuple[Site, ...]:
    """Vision layers of LLaVA-OneVision-7B at the same fractions of another depth."""
    return tuple(
        Site("vision", layer)
        for layer in sorted({round(layer / VISION_DEPTH * depth) for layer in layers})
    )


def decoder_sites(layers: Sequence[int], depth: int) -> tuple[Site, ...]:
    """Decoder layers of LLaVA-OneVision-7B at the same fractions of another depth."""
    moved = {round(layer / DECODER_DEPTH * depth) for layer in layers}
    # Layer 0 has no layer before it whose attention could score; after the last nothing is saved.
    return tuple(
        Site("decoder", layer) for layer in sorted({max(1, min(at, depth - 1)) for at in moved})
    )


def equal_log_steps(tokens: int, kept: int, sites: int) -> tuple[int, ...]:
    """Tokens after each site on the way to ``kept``, every site keeping about the same share.

    Example:
        >>> equal_log_steps(729, 381, 4)
        (620, 527, 448, 381)
    """
    return tuple(round(tokens * (kept / tokens) ** (step / sites)) for step in range(1, sites + 1))


class AtPublishedSites(Method):
    """A method at iLLaVA's sites and counts; baselines have the same, so that cost is equal."""

    acts_in = "4 vision layers, 4 decoder layers"
    vision_share = (len(VISION_LAYERS) * math.log(VISION_KEEP)) / (
        len(VISION_LAYERS) * math.log(VISION_KEEP) + len(DECODER_LAYERS) * math.log(DECODER_KEEP)
    )

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return published_sites(vision_layers, text_layers)

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...]:
        return equal_log_steps(tokens, kept, sites)


class Illava(AtPublishedSites):
    """iLLaVA at a fixed ratio; 729 -> 381 -> 250 at its published point."""

    name = "illava"
    summary = "recycle the least attended tokens into the weakest that stay, in tower and decoder"
    paper = "arXiv:2412.06263 (ICLR 2026)"
    cost = "a softmax over all pairs per vision site, one attention row per decoder site"
    merges = True

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.illava import RecycleRedundant

        return RecycleRedundant(
            shape.tokens_out, "received" if site.stage == "vision" else "last_row"
        )


METHOD = Illava()
