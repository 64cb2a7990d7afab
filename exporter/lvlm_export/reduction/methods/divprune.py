"""DivPrune: the subset of visual tokens whose smallest distance is largest, greedily.

Source: arXiv:2503.02175 and the authors' code (vbdi/divprune @799e2d95, llava_arch.py:147-171);
shared METHODS §14; written from the description. On the tokens as they would enter the decoder:
distance is 1 - cosine; the first token is the one farthest from its nearest neighbour, each next
one the farthest from all that were chosen. Raster order, original positions (the
authors' ids are contiguous), no attention.

One V x V product and K steps over a running minimum of V numbers each. Where tiles are packed,
newlines are candidates like any other; as they are equal, one of them stands for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


class DivPrune(Method):
    """DivPrune between projector and decoder."""

    name = "divprune"
    summary = "keep the tokens that are farthest from each other"
    paper = "arXiv:2503.02175"
    cost = "all pairs once, then K steps over V distances (K x 4 small nodes)"
    acts_in = "before the decoder"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("projected", 0),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.greedy import FarthestFirst

        return FarthestFirst(shape.tokens_out)


METHOD = DivPrune()
