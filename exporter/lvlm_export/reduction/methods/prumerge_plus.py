"""LLaVA-PruMerge+: as ``prumerge``, with as many evenly spaced features as salient ones.

Source: arXiv:2403.15388 and the authors' code (clip_encoder.py:208-227); shared METHODS §5. Half
of the K-1 places are evenly spaced, the other half the most salient of what is left. The authors'
fixed ratio does not check for a place that is chosen twice; here every place is chosen once. At
K = 145 that is their 72 + 72 + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.methods.prumerge import METHOD as PRUMERGE
from lvlm_export.reduction.methods.prumerge import neighbour_count
from lvlm_export.reduction.methods.uniform import even_places

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


def spaced_places(tokens: int, keep: int) -> list[int]:
    """The evenly spaced half of a budget of ``keep``, the appended token left out."""
    half = (keep - 1) // 2
    return even_places(tokens, half) if half else []


class PruMergePlus(Method):
    """PruMerge with spatial samples."""

    name = "prumerge_plus"
    summary = "as prumerge, half of the features evenly spaced"
    paper = "arXiv:2403.15388"
    cost = PRUMERGE.cost
    acts_in = PRUMERGE.acts_in
    merges = True
    appends = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return PRUMERGE.sites(vision_layers, text_layers, ratio)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.prumerge import PruneAndMerge

        spaced = spaced_places(shape.tokens_in, shape.tokens_out)
        salient = shape.tokens_out - 1 - len(spaced)
        return PruneAndMerge(salient, neighbour_count(shape.tokens_in), spaced)


METHOD = PruMergePlus()
