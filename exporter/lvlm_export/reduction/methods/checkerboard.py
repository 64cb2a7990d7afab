"""Checkerboard: one halving in the tower by the colours of a board, the rest late in the decoder.

A method of this project; shared METHODS §17. At a third of the vision tower's depth, the patches of one
colour of a checkerboard each join the patch of the other colour whose key, heads side by side, is
most like their own, a penalty on the distance holding it near (that of ``anchors``, scaled by the
grid); a patch that is joined becomes the mean of its group. No score ranks patches, and groups are
nearly equal, so that nothing has to count sizes afterwards: the graphs behind the site are those of a
method that drops. Where the ratio asks for less than half, the decoder drops the rest at two thirds of
its depth, where the last text token's attention has settled: what it attends least leaves (196 -> 98
-> 65 of the demo's patches at 0.33).

A ratio above a half lets evenly spaced ones of the colour leave, and has no site in the decoder. The
best pairs in their place would be background, and the more of it there is, the less it would weigh. A
model that packs its tiles as squares keeps the smallest square above a half (729 -> 400); its decoder
drops the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_export.reduction.methods.anchors import penalty, whole_grid
from lvlm_export.reduction.methods.uniform import even_places
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

VISION_FRACTION, DECODER_FRACTION = 1 / 3, 2 / 3
HALF = 0.5


def leaving_places(grid: tuple[int, int], keep: int) -> list[int]:
    """Evenly spaced raster places of the colour of the corner that leave so that ``keep`` stay.

    Example:
        >>> leaving_places((4, 4), 8)
        [0, 2, 5, 7, 8, 10, 13, 15]
        >>> leaving_places((4, 4), 12)
        [2, 7, 10, 15]
    """
    tokens, columns = grid[0] * grid[1], grid[1]
    colour = [place for place in range(tokens) if (place // columns + place % columns) % 2 == 0]
    return [colour[index] for index in even_places(len(colour), tokens - keep)]


class Checkerboard(Method):
    """One halving at a vision layer, then the most attended at a late decoder layer."""

    name = "checkerboard"
    summary = (
        "halve the picture by the colours of a checkerboard; drop the rest late in the decoder"
    )
    paper = "this project; merging as ToMe's"
    cost = "cosines of one half of the tokens with the other, once; one attention row"
    acts_in = "1 vision layer, 1 decoder layer"
    merges = True
    # The tower takes all that the ratio asks for, down to a half.
    vision_share = 1.0

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        halving = Site("vision", round(VISION_FRACTION * vision_layers))
        if ratio >= HALF:
            return (halving,)
        return halving, Site("decoder", max(1, round(DECODER_FRACTION * text_layers)))

    def least_of_tile(self, tokens: int) -> int:
        return max(1, tokens // 2)

    def merges_at(self, site: Site) -> bool:
        return site.stage == "vision"

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        if site.stage == "decoder":
            from lvlm_export.reduction.selectors import KeepBest

            return KeepBest(shape.tokens_out, "last_row")
        grid = whole_grid(self.name, site, shape)
        if shape.tokens_out < self.least_of_tile(shape.tokens_in):
            raise UsageError(
                f"method checkerboard cannot take {shape.tokens_in} tokens to {shape.tokens_out} at"
                f" site {site.name}; the nearest it can is half, {self.least_of_tile(shape.tokens_in)}"
            )
        from lvlm_export.reduction.selectors.checkerboard import JoinColours

        return JoinColours(grid, leaving_places(grid, shape.tokens_out), penalty(grid))


METHOD = Checkerboard()
