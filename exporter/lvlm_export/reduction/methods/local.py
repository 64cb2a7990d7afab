"""Local: at a third of the vision tower, tokens merge into the most similar near one, in three steps.

A method of this project; shared METHODS §17. At each of three layers in a row the tokens are two
sets: the colours of a checkerboard at the first, every other one in raster order at the next. Each
token of the first set finds the one of the second whose key, heads side by side, is most like its
own, less a penalty on the distance; the r best pairs become the mean of their tokens, weighted by
how many patches each stands for, at the place of the second. Attention adds the logarithm of that
size to a key's logits, in the rest of the tower and in every layer and step of the decoder.

Half of what leaves does so at the first site, a quarter at each of the others (196 -> 130 -> 98 ->
65 of the demo's patches at 0.33). No site removes more than half: where a small ratio asks for
that, the sites before it remove more, and three sites reach an eighth; below a seventh there is a
fourth in the next layer, and a sixteenth is the least. The penalty is that of
``anchors``, scaled by the grid. Its parts are known (merging and sizes are ToMe's,
arXiv:2210.09461).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.methods.anchors import penalty
from lvlm_export.reduction.methods.tome import check_half, too_few
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTION, SITES = 1 / 3, 3
# Below it three halvings may not do.
SMALL = 1 / 7


def local_counts(tokens: int, kept: int, sites: int) -> tuple[int, ...]:
    """Tokens after each site on the way to ``kept``: the first removes twice what another does.

    Raises:
        UsageError: ``kept`` is too small to be reached; names the nearest ratio.

    Example:
        >>> local_counts(196, 65, 3)
        (130, 98, 65)
        >>> local_counts(196, 39, 3)
        (118, 78, 39)
    """
    removed = tokens - kept
    counts = [tokens - round(removed * index / (sites + 1)) for index in range(2, sites + 2)]
    for index in reversed(range(sites - 1)):
        counts[index] = min(counts[index], 2 * counts[index + 1])
    if 2 * counts[0] < tokens:
        raise too_few("local", tokens, kept, sites)
    return tuple(counts)


class Local(Method):
    """Merging near pairs at three vision layers in a row."""

    name = "local"
    summary = "merge tokens into the most similar near ones; tower and decoder count their sizes"
    paper = "this project; merging and sizes as ToMe's"
    cost = "cosines of one half of the tokens with the other per site"
    acts_in = "3 or 4 vision layers"
    merges = True
    tracks_size = True
    sizes_in_decoder = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        last = max(SITES - 1, round(FRACTION * vision_layers))
        layers = range(last - SITES + 1, min(last + 1 + (ratio < SMALL), vision_layers))
        return tuple(Site("vision", layer) for layer in layers)

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...]:
        return local_counts(tokens, kept, sites)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        if shape.grid is None:
            raise UsageError(
                f"method local measures distances on a grid of patches, and a tile has"
                f" {shape.tokens_full}; take --method tome"
            )
        check_half(self.name, site, shape)
        from lvlm_export.reduction.selectors.local import MergeNear

        return MergeNear(shape, shape.grid, penalty(shape.grid))


METHOD = Local()
