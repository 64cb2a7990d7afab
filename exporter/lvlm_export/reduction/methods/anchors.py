"""Anchors: every token joins the most similar near one of a constant, even net of tokens.

A method of this project. At a third of the vision tower's depth, K places spread evenly over the
picture stay, the same in every picture; each other token joins the one whose key is most like its
own, a penalty on the distance holding it near, and an anchor becomes the mean of its group, weighted
by how many patches each stands for. Later attention in the tower adds the logarithm of that size to
a key's logits, as ToMe does. No score ranks tokens and no token is lost, so what the attention
overlooks is not dropped.

The decoder does not count sizes. Groups of an even net are nearly equal, and counting them gives nothing
that could be told on the demo at 0.33: 93.00 % of 2,000 answers right with, 92.75 % without, a paired
difference of +0.25 points (-0.39 to +0.89, p = 0.53; ``benchmarks/token_sizes.py --method anchors
--questions 2000``, ONNX Runtime 1.31.1 on two cores of an Intel Xeon, mosaics). Without them a decode
step costs nothing.

Its parts are known: the merging and the sizes are ToMe's (arXiv:2210.09461), with whole keys in
place of their mean over heads. The penalty is 0.02 of a cosine per squared step of a 14 x 14 grid;
on another grid it is scaled to the same part of the picture.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

FRACTION = 1 / 3
# Of a cosine, per squared step of a grid of this many patches a side.
PENALTY, PENALTY_GRID = 0.02, 14


def spread_places(grid: tuple[int, int], keep: int) -> list[int]:
    """``keep`` raster places spread evenly over a grid of rows and columns.

    Rows have equal numbers of them but for one; in a row they are evenly spaced, and every other row
    is shifted by half a space, so that half of all places is a checkerboard.

    Example:
        >>> spread_places((4, 4), 8)
        [0, 2, 5, 7, 8, 10, 13, 15]
    """
    rows, columns = grid
    places = []
    for row in range(rows):
        count = (row + 1) * keep // rows - row * keep // rows
        # In quarters of a space: the first row begins at one, the next at three.
        start = 1 if row % 2 == 0 else 3
        places += [
            row * columns + (4 * index + start) * columns // (4 * count) for index in range(count)
        ]
    return places


def penalty(grid: tuple[int, int]) -> float:
    """Of a cosine, per squared step of a grid of rows and columns.

    The same for the same part of the picture, if the grid is finer, and of a square as large as the
    picture, if it is none.
    """
    return PENALTY * (PENALTY_GRID / math.sqrt(grid[0] * grid[1])) ** 2


def whole_grid(method: str, site: Site, shape: ReducerShape) -> tuple[int, int]:
    """Rows and columns of the tokens at a site where nothing has left yet.

    Raises:
        UsageError: Tokens have left, or they are no grid.
    """
    if shape.grid is None or shape.tokens_in != shape.tokens_full:
        raise UsageError(
            f"method {method} takes its tokens for a whole grid of patches, and site {site.name} has"
            f" {shape.tokens_in}; place it where nothing has left yet"
        )
    return shape.grid


class Anchors(Method):
    """Groups around constant places at one site of the vision tower."""

    name = "anchors"
    summary = "merge every token into the most similar of evenly spread ones near it"
    paper = "this project; merging and sizes as ToMe's"
    cost = "cosines of all tokens with the kept ones, at one site; no score, no TopK"
    acts_in = "1 vision layer"
    merges = True
    tracks_size = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("vision", round(FRACTION * vision_layers)),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        grid = whole_grid(self.name, site, shape)
        from lvlm_export.reduction.selectors.anchors import JoinAnchors

        return JoinAnchors(grid, spread_places(grid, shape.tokens_out), penalty(grid))


METHOD = Anchors()
