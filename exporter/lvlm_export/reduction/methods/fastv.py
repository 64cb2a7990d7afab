"""FastV: drop the visual tokens that the last prompt token attends least, after two layers.

Source: arXiv:2403.06764 and the authors' code (pkunlp-icler/FastV @d1659729); shared METHODS §3.
Score: mean over heads of the last query row of layer K-1; pruned once, at the input of layer
K = 2, in the prefill. What stays keeps its raster order and its original positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

LAYER = 2


class FastV(Method):
    """FastV at its published layer."""

    name = "fastv"
    summary = "drop what the last text token attends least, at decoder layer 2"
    paper = "arXiv:2403.06764"
    cost = "one attention row and a TopK"
    acts_in = "1 decoder layer"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("decoder", LAYER),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepBest

        return KeepBest(shape.tokens_out, "last_row")


METHOD = FastV()
