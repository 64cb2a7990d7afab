"""VisionZip: the most attended features stay, the rest is summed into a few contextual tokens.

Source: arXiv:2412.04467 and the authors' code (dvlab-research/VisionZip @3151f6df
visionzip/clip_encoder.py:41-85); shared METHODS §14. In the last vision layer that runs, patches
are ranked by the CLS token's attention, without CLS by the attention they receive. Dominant
tokens (the CLS token among them, as in the authors' counts) to contextual ones as 54 to 10. Every
so many of the remaining patches is a target; each other one joins the target whose mean key is
most like its own, and a contextual token is its target plus the mean of what joined it.

Differences: tokens stand in raster order (the authors append the contextual ones), so that the
rule also holds for tiles that are packed as grids; without CLS the scores are the last layer's
that runs (EffiVLM-Bench takes layer 24 of SigLIP). Where a merger joins groups of patches, a CLS token is
looked at and not kept. What stays keeps its place on the
tower's grid as its position (the authors' ids are contiguous).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

DOMINANT, CONTEXTUAL = 54, 10


def split_budget(keep: int) -> tuple[int, int]:
    """Dominant and contextual tokens of a budget; 64 is 54 and 10."""
    dominant = max(1, round(keep * DOMINANT / (DOMINANT + CONTEXTUAL)))
    return dominant, keep - dominant


class VisionZip(Method):
    """VisionZip after the last vision layer."""

    name = "visionzip"
    summary = "keep the most attended features, sum the rest into contextual ones"
    paper = "arXiv:2412.04467"
    cost = "one attention row (without CLS all pairs), cosines of the rest with the targets"
    acts_in = "after the vision tower"
    merges = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("features", vision_layers),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.visionzip import DominantAndContextual

        # Where a merger joins groups of patches, a CLS token alone is no token behind it.
        has_cls = bool(shape.prefix) and shape.group == 1
        return DominantAndContextual(shape.tokens_in, *split_budget(shape.tokens_out), has_cls)


METHOD = VisionZip()
