"""Image and text guided pruning: the long tail of the picture first, then what the text ignores.

Source: arXiv:2409.01162; no code was published, and shared METHODS §8 has only its outline, so
this is its fixed-ratio form and not a reproduction. After the vision tower the patches most
cosine-similar to the CLS token stay; at decoder layer 2 the visual tokens that the last text
token attends most. The ratio's logarithm is shared in equal parts between the two (our choice;
the paper cuts at a picture's own inflection point). Text tokens, which the paper prunes as well,
are never touched. Original positions are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.methods.fastv import LAYER

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


class ImageText(Method):
    """Similarity to the CLS token, then attention of the last text token."""

    name = "image_text"
    summary = "drop what is unlike the CLS token, then what the last text token attends least"
    paper = "arXiv:2409.01162 (outline only)"
    cost = "one row of cosines, one attention row, two TopK"
    acts_in = "after the vision tower, 1 decoder layer"
    needs_cls = True
    vision_share = 0.5

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("features", vision_layers), Site("decoder", LAYER))

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepBest, KeepMostLikeCls

        if site.stage == "features":
            return KeepMostLikeCls(shape.tokens_out)
        return KeepBest(shape.tokens_out, "last_row")


METHOD = ImageText()
