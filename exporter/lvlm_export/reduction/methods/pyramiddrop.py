"""PyramidDrop: drop visual tokens in three steps, at 1/4, 1/2 and 3/4 of the depth.

Source: arXiv:2410.17247 and the authors' code (@6444f304); shared METHODS §14. Published: layers
8, 16 and 24 of 32 keep 1/2, 1/4 and 1/8 of the original tokens, which is ``--ratio 0.125`` here:
the steps are equal in the logarithm and the last one is the ratio. Differences: the score is the
last token's attention in the layer before the site (the authors compute the row again with the
next layer's norm and projections), and original positions are kept (theirs are renumbered).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTIONS = (1 / 4, 1 / 2, 3 / 4)


class PyramidDrop(Method):
    """PyramidDrop with equal steps of the logarithm."""

    name = "pyramiddrop"
    summary = "drop in three steps what the last text token attends least"
    paper = "arXiv:2410.17247"
    cost = "one attention row and a TopK per site"
    acts_in = "3 decoder layers"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        layers = sorted({max(1, round(part * text_layers)) for part in FRACTIONS})
        return tuple(Site("decoder", layer) for layer in layers)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepBest

        return KeepBest(shape.tokens_out, "last_row")


METHOD = PyramidDrop()
