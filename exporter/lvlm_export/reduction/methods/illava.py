"""iLLaVA: merge the least attended tokens, in the vision encoder and in the decoder.

Source: arXiv 2412.06263 and the authors' code (hulianyuyy/iLLaVA @4068149e); shared METHODS §2.
Both stages rank tokens by the attention they receive, average the r+1 lowest with linear
weights (the least attended weighs most) into the best of them, and delete the other r.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

# LLaVA-OneVision-7B: vision layers 5-6-7-8 of 26, decoder layer 8 of 28.
VISION_FRACTIONS = (5 / 26, 6 / 26, 7 / 26, 8 / 26)
DECODER_FRACTION = 8 / 28


def published_sites(vision_layers: int, text_layers: int) -> tuple[Site, ...]:
    """The published sites, moved to the same fractions of other depths.

    Fractions that round to the same layer of a shallow tower become one site.
    """
    vision = sorted({round(f * vision_layers) for f in VISION_FRACTIONS})
    # Layer 0 has no layer before it whose attention could score the tokens.
    decoder = max(1, round(DECODER_FRACTION * text_layers))
    return (*(Site("vision", layer) for layer in vision), Site("decoder", decoder))


class AtPublishedSites(Method):
    """A method at iLLaVA's sites and counts; baselines have the same, so that cost is equal."""

    acts_in = "4 vision layers, 1 decoder layer"
    # ln(361/729) / ln(253/729): the vision encoder's part of the published reduction.
    vision_share = 0.664

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return published_sites(vision_layers, text_layers)


class Illava(AtPublishedSites):
    """iLLaVA at a fixed ratio; 729 -> 361 -> 253 at its published point."""

    name = "illava"
    summary = "merge the least attended tokens in the vision encoder and the decoder"
    paper = "arXiv:2412.06263"
    cost = "a softmax over all pairs per vision site, one attention row in the decoder"
    merges = True

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import MergeLeastAttended

        return MergeLeastAttended(
            shape.tokens_out, "received" if site.stage == "vision" else "last_row"
        )


METHOD = Illava()
