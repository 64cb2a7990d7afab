"""SparseVLM: text tokens that rate the picture drop visual ones in three steps, and recycle them.

Source: arXiv:2410.04417 and the authors' code (Gumpest/SparseVLMs @26a5f488,
modelling_sparse_llama.py:199-310, score.py, utils.py:179-239); shared METHODS §7. On the decoder's
input each visual token spreads its attention, a softmax of plain products, over the text after
its image; the text tokens that get more than the mean of it are raters. After layers 2, 6 and 15 of
32 the visual tokens that the raters attend most stay. Of those that leave the better 30 % are
recycled: density peaks make one cluster of about ten, and a cluster's mean stays.

The counts are the published lists: at the published shares of tokens in the last layer the steps
are exactly 300-200-110, 303-110-36, 238-48-26 and 66-30-17 of 576, and between them the logarithms
are interpolated. Recycled clusters count in K.

Differences: raters are a 0-1 weight on the text rows, so that no shape depends on them; a cluster
stands at its centre's place in raster order (theirs follow the kept tokens); the random noise on
the densities is a small ramp, so that equal ones have an order; original positions are kept, as
in the authors' second version (their first renumbers); the sites move to the same fractions of
other depths. The rank that chose the counts in the first release is no longer in the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTIONS = (3 / 32, 7 / 32, 16 / 32)
VISUAL = 576
# Tokens kept at the three sites, recycled clusters left out, by the budget they are named after.
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


def cluster_count(pruned: int) -> int:
    """Clusters that are made of ``pruned`` tokens."""
    return int(candidate_count(pruned) / 10) + 1


def candidate_count(pruned: int) -> int:
    """How many of ``pruned`` tokens, the better ones, are recycled."""
    return int(0.3 * pruned) + 1


def split_budget(tokens: int, keep: int) -> tuple[int, int]:
    """Kept and recycled tokens of a site: kept plus their clusters is ``keep``.

    Where K is smaller than what would be recycled, one token is kept and the rest is clusters.
    """
    for kept in range(min(keep, tokens - 1), 0, -1):
        if kept + cluster_count(tokens - kept) == keep:
            return kept, keep - kept
    return (1, keep - 1) if tokens > keep else (tokens, 0)


def counts_with_clusters(kept: Sequence[int], tokens: int = VISUAL) -> tuple[int, ...]:
    """Tokens after each site that keeps so many and recycles from what it prunes."""
    counts = []
    for each in kept:
        tokens = each + cluster_count(tokens - each)
        counts.append(tokens)
    return tuple(counts)


def log_shares(ratio: float) -> tuple[float, ...]:
    """Part of the total log-ratio that is reached at each of the three sites; the last is 1.

    Published points as published, the shares between two of them interpolated over the logarithm of
    the ratio; outside of them those of the nearest.
    """
    points = []
    for kept in PUBLISHED.values():
        logs = [math.log(count / VISUAL) for count in counts_with_clusters(kept)]
        points.append((logs[-1], tuple(log / logs[-1] for log in logs)))
    points.sort()
    at = math.log(ratio)
    if at <= points[0][0]:
        return points[0][1]
    for (low, one), (high, other) in itertools.pairwise(points):
        if at <= high:
            part = (at - low) / (high - low)
            return tuple(a + part * (b - a) for a, b in zip(one, other, strict=True))
    return points[-1][1]


class SparseVlm(Method):
    """SparseVLM with the published counts."""

    name = "sparsevlm"
    summary = "drop in three steps what relevant text attends least, recycle some of it as clusters"
    paper = "arXiv:2410.04417"
    cost = "the text's attention rows and distances of 30 % of what leaves, per site"
    acts_in = "3 decoder layers"
    merges = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        layers = sorted({max(1, round(part * text_layers)) for part in FRACTIONS})
        return tuple(Site("decoder", layer) for layer in layers)

    def log_shares(self, ratio: float, sites: int) -> tuple[float, ...]:
        return log_shares(ratio)[-sites:]

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.sparsevlm import RatedAndRecycled

        kept, clusters = split_budget(shape.tokens_in, shape.tokens_out)
        recycled = max(candidate_count(shape.tokens_in - kept), clusters)
        return RatedAndRecycled(kept, clusters, recycled)


METHOD = SparseVlm()
