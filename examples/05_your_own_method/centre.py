"""Keep the patches nearest the middle of the picture: a baseline that trusts photographers."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector


def middle_places(side: int, keep: int) -> list[int]:
    """Raster places of the ``keep`` patches of a ``side`` x ``side`` grid nearest its middle."""
    middle = (side - 1) / 2
    distances = [
        ((row - middle) ** 2 + (column - middle) ** 2, row * side + column)
        for row in range(side)
        for column in range(side)
    ]
    return sorted(place for _, place in sorted(distances)[:keep])


class Centre(Method):
    """Drop the rim, once, after the vision tower."""

    name = "centre"
    summary = "keep the patches nearest the middle (example)"
    paper = "examples/05_your_own_method"
    cost = "a gather of constant places"
    acts_in = "after the vision tower"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("features", vision_layers),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepPlaces

        side = isqrt(shape.tokens_in)
        if side * side != shape.tokens_in:
            raise UsageError(f"centre needs a square of patches, and {shape.tokens_in} are none")
        return KeepPlaces(middle_places(side, shape.tokens_out))


METHOD = Centre()
