"""DART: keep pivots and the visual tokens least like them; duplication, not attention, decides.

Source: arXiv:2502.11494; a fork of the authors' code (xqy1111111/DART @d6a5af6f,
modeling_llama_self.py:422) and LightCompress' port (llmc/compression/token_reduction/dart.py
@9701d035). Before layer 2 of 32, as all of the authors' evaluation scripts have it (LightCompress'
configuration says 5): the four visual tokens and the four tokens of the text after the image whose
keys in the layer before have the largest L1 norm are pivots; each in turn keeps the visual tokens
least cosine-similar to it among those that are left. Original positions are kept.

Differences: the site moves to the same fraction of other depths; pivots choose in the order of
falling norm, visual ones first (a Python set decides in the port); similarity is taken on the
hidden states without the final norm's gains, as reducers hold no weights; and the quotas of the
eight pivots differ by at most one, so that any K is met exactly (the port rounds down).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTION = 2 / 32
PIVOTS = 4


def pivot_quotas(keep: int) -> tuple[int, ...]:
    """Tokens that each pivot keeps beside the visual pivots; the first take the remainder."""
    share, rest = divmod(max(0, keep - PIVOTS), 2 * PIVOTS)
    return tuple(share + (index < rest) for index in range(2 * PIVOTS))


class Dart(Method):
    """DART at the published fraction of the depth."""

    name = "dart"
    summary = "keep what duplicates the pivots least, at 2/32 of the decoder"
    paper = "arXiv:2502.11494"
    cost = "8 rows of cosines and 8 TopK; no attention"
    acts_in = "1 decoder layer"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("decoder", max(1, round(FRACTION * text_layers))),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.dart import LeastDuplicated

        return LeastDuplicated(shape.tokens_out, PIVOTS, pivot_quotas(shape.tokens_out))


METHOD = Dart()
