"""Downsampling: the picture itself is resized until it has as many tokens as the budget.

A baseline that many methods lose to (arXiv:2510.07143). Every tile's pixels are averaged over
areas to a square whose edge is a whole number of patches, and the tower runs on the small picture
with its position table resized (bicubic, as ``interpolate_pos_encoding`` of transformers does), so
the vision encoder gets cheaper as well. The kept count is the square nearest to the ratio.

A token of the small picture has the position of the patch that lies at its centre in the large
one, so that text after the image keeps its positions, as with every other method.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


class Downsample(Method):
    """A smaller picture."""

    name = "downsample"
    summary = "resize the picture to as many tokens, a square (baseline)"
    paper = "baseline; arXiv:2510.07143 finds it strong"
    cost = "two small products with the pixels; the vision encoder shrinks too"
    acts_in = "before the vision tower"
    merges = True
    keeps_square = True

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("pixels", 0),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        side = math.isqrt(shape.tokens_out)
        if side * side != shape.tokens_out:
            raise UsageError(
                f"method downsample keeps a square and {shape.tokens_out} is not one; the nearest"
                f" are {side**2} and {(side + 1) ** 2}"
            )
        from lvlm_export.reduction.selectors.downsample import AreaResize

        return AreaResize(shape)


METHOD = Downsample()
