"""Random pruning at iLLaVA's sites and counts: the baseline a method must beat.

The kept places are drawn once per graph from a seed and baked in, so the graph stays static and
costs nothing; every picture loses the same places. Same sites and counts as ``illava``, so that a
comparison isolates which tokens go, at equal cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lvlm_export.reduction.methods.illava import AtPublishedSites

if TYPE_CHECKING:
    from lvlm_export.reduction.method import ReducerShape, Site
    from lvlm_export.reduction.selectors import Selector


def kept_places(site: Site, shape: ReducerShape) -> list[int]:
    """Ascending places of the tokens that stay, drawn without replacement."""
    # The site takes part in the seed, or every vision site would drop the same relative places.
    generator = np.random.default_rng([shape.seed, site.stage == "decoder", site.layer])
    return sorted(generator.choice(shape.tokens_in, shape.tokens_out, replace=False).tolist())


class RandomPruning(AtPublishedSites):
    """Keep a seeded random subset at the sites that iLLaVA uses."""

    name = "random"
    summary = "keep a seeded random subset at iLLaVA's sites (baseline)"
    paper = "baseline; arXiv:2511.02650 finds it strong"
    cost = "a gather of constant places"

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors import KeepPlaces

        return KeepPlaces(kept_places(site, shape))


METHOD = RandomPruning()
