"""Uniform pruning: evenly spaced tokens stay, at iLLaVA's sites and counts.

A baseline that covers the whole picture. The places are evenly spaced in raster order and the
same for every picture; the sites and counts are ``illava``'s, as ``random``'s are, so that a
comparison isolates which tokens go, at equal cost. Original positions are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.methods.illava import AtPublishedSites

if TYPE_CHECKING:
    from lvlm_export.reduction.method import ReducerShape, Site
    from lvlm_export.reduction.selectors import Selector


def even_places(count: int, keep: int) -> list[int]:
    """``keep`` places of ``count``: the middles of as many equal spans."""
    return [(2 * index + 1) * count // (2 * keep) for index in range(keep)]


class UniformPruning(AtPublishedSites):
    """Keep evenly spaced tokens at the sites that iLLaVA uses."""

    name = "uniform"
    summary = "keep evenly spaced tokens at iLLaVA's sites (baseline)"
    paper = "baseline"
    cost = "a gather of constant places"

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepPlaces

        return KeepPlaces(even_places(shape.tokens_in, shape.tokens_out))


METHOD = UniformPruning()
