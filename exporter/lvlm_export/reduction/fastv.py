"""FastV: drop the visual tokens that the last prompt token attends least, after two layers.

Source: arXiv:2403.06764 and the authors' code (pkunlp-icler/FastV @d1659729); shared METHODS §3.
Score: mean over heads of the last query row of layer K-1; pruned once, at the input of layer
K = 2, in the prefill. What stays keeps its raster order and its original positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

LAYER = 2


def relative_flops(
    layer: int, share_removed: float, tokens: int, visual: int, width: int, mlp: int, layers: int
) -> float:
    """FLOPs of the prefill after pruning, as a share of the whole prefill.

    Source: arXiv:2403.06764 §4.2: a layer of n tokens takes 4 n d² + 2 n² d + 2 n d m.
    """

    def one_layer(count: float) -> float:
        return 4 * count * width**2 + 2 * count**2 * width + 2 * count * width * mlp

    rest = one_layer(tokens - round(share_removed * visual))
    return (layer * one_layer(tokens) + (layers - layer) * rest) / (layers * one_layer(tokens))


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
