"""ToMe: pairs of similar tokens become their mean inside the vision tower.

Source: arXiv:2210.09461 and the authors' code (facebookresearch/ToMe @af95e4b1, tome/merge.py and
tome/patch/timm.py); shared METHODS §14. Between attention and MLP, tokens go by turns into two
sets; each token of the first is paired with the one of the second whose key, averaged over heads,
is most like its own; the r most similar pairs merge into the mean of the tokens, weighted by how
many patches each stands for. Later attention adds the logarithm of that size to a key's logits, so
that a token counts for the patches in it. The CLS token merges with nothing.

Differences: the authors merge after every layer, which would cut the tower into as many graphs;
here it is four layers, the middles of four equal parts of the depth, with equal steps of the
logarithm. A site halves the tokens at most, so a sixteenth is the least that can stay. Tokens stay
in raster order (theirs are the unmerged of the first set, then the second), a merged one at its
place in the second set, which is its position in the decoder.

The decoder counts sizes too, which ToMe, a method for towers alone, does not say: without it a
token of ten patches weighs in every answer as one of one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTIONS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)


def counts_per_site(tokens: int, kept: int, sites: int) -> tuple[int, ...]:
    """Tokens after each site on the way to ``kept``: equal steps of the logarithm, none over half.

    Raises:
        UsageError: ``kept`` is too small to be reached; names the nearest ratio.
    """
    counts, left = [], tokens
    for index in range(1, sites + 1):
        wanted = round(tokens * (kept / tokens) ** (index / sites))
        # Rounding may give one token less than half.
        left = max(wanted, -(-left // 2))
        counts.append(left)
    if left > kept:
        raise too_few("tome", tokens, kept, sites)
    return tuple(counts)


def too_few(method: str, tokens: int, kept: int, sites: int) -> UsageError:
    """The error of a method that halves at most, and cannot reach ``kept``; names the nearest ratio."""
    least = tokens
    for _ in range(sites):
        least = -(-least // 2)
    return UsageError(
        f"method {method} halves the tokens at most at each of its {sites} sites, so {tokens} of a"
        f" tile cannot become {kept}; the nearest ratio it can reach is {least / tokens:.4g}"
    )


def check_half(method: str, site: Site, shape: ReducerShape) -> None:
    """UsageError where a site of a method that halves at most keeps fewer than half."""
    if 2 * shape.tokens_out < shape.tokens_in:
        raise UsageError(
            f"method {method} cannot take {shape.tokens_in} tokens to {shape.tokens_out} at site"
            f" {site.name}; the nearest it can is half, {-(-shape.tokens_in // 2)}"
        )


class TokenMerging(Method):
    """ToMe at four sites of the vision tower."""

    name = "tome"
    summary = "merge similar tokens inside the vision tower; attention counts their sizes"
    paper = "arXiv:2210.09461"
    cost = "cosines of one half of the tokens with the other per site"
    acts_in = "4 vision layers"
    merges = True
    tracks_size = True
    sizes_in_decoder = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        layers = sorted({int(part * vision_layers) for part in FRACTIONS})
        return tuple(Site("vision", layer) for layer in layers)

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...]:
        return counts_per_site(tokens, kept, sites)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        check_half(self.name, site, shape)
        from lvlm_export.reduction.selectors.tome import MergePairs

        return MergePairs(shape)


METHOD = TokenMerging()
