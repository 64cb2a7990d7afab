"""LLaVA-PruMerge: salient features take in their nearest, one more token takes the rest.

Source: arXiv:2403.15388 and the authors' code (42Shawn/LLaVA-PruMerge @097c0411,
clip_encoder.py:93-168); shared METHODS §5. Patches are ranked by the CLS token's attention with
all heads taken as one, c. Each of the K-1 best adds c_j x_j of the 32 patches whose keys are most
cosine-similar to its own; one token is appended, the sum of c_j x_j over all that left.

This is the fixed-ratio form; the authors' adaptive one chooses the ratio per picture, and
``adaptive_ratio`` takes its mean over sample pictures, once, before a build. Differences:
query and key are the last layer's that runs (theirs are the next layer's projections of the same
features, which would need a layer that LLaVA never runs), tokens stand in raster order (theirs in
order of score), and the appended token counts in K, so 1/8 of 576 is 72 (theirs 73). Without a
CLS token c is the mean attention that a patch receives. What stays keeps its place on
the tower's grid as its position (the authors' ids are contiguous).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

NEIGHBOURS = 32
# A score is an outlier above the third quartile by so many quartile ranges.
WHISKER = 1.5


def neighbour_count(tokens: int) -> int:
    """Tokens that a kept one takes in, of a tile of ``tokens``."""
    return min(NEIGHBOURS, tokens - 1)


def adaptive_ratio(rows: Sequence[Sequence[float]]) -> float:
    """The ratio to build with: the mean of what the adaptive rule would keep of sample pictures.

    Source: clip_encoder.py:34-47 and 115: of a picture the patches are kept whose score is an
    outlier, and one token is appended. The authors choose K for every picture; a static graph has
    one K, so it is chosen here on a few dozen pictures like those that the bundle is for.

    Args:
        rows: Per picture the scores ``c`` of its N patches, the CLS token's attention row.

    Returns:
        Share of the tokens, in (0, 1]; the appended token counts.

    Raises:
        UsageError: No picture, or one with fewer than two patches.
    """
    if not rows or min(map(len, rows)) < 2:
        raise UsageError("the adaptive rule needs sample pictures of two patches or more")
    shares = []
    for row in rows:
        low, _, high = statistics.quantiles(row, n=4, method="inclusive")
        kept = sum(score > high + WHISKER * (high - low) for score in row)
        shares.append((kept + 1) / len(row))
    return statistics.fmean(shares)


class PruMerge(Method):
    """PruMerge after the last vision layer, for pictures of one tile."""

    name = "prumerge"
    summary = "salient features take in their 32 nearest, one token takes the rest"
    paper = "arXiv:2403.15388"
    cost = "one attention row (without CLS all pairs), K rows of cosines"
    acts_in = "after the vision tower"
    merges = True
    appends = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("features", vision_layers),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.prumerge import PruneAndMerge

        return PruneAndMerge(shape.tokens_out - 1, neighbour_count(shape.tokens_in))


METHOD = PruMerge()
