"""Counts that a user gave for the sites of a ratio, in place of the schedule's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lvlm_export.reduction.budget import BudgetPlan, Geometry, SiteCount, full_count, layout_plan
from lvlm_export.reduction.method import Site
from lvlm_runtime.errors import UsageError

# How far a ratio may be from the counts that a user gave for it.
NEAR = 0.005


def plan_by_hand(
    ratio: float, sites: Sequence[Site], keep: Mapping[Site, float], geometry: Geometry
) -> BudgetPlan:
    """Counts that a user gave for every site of a ratio.

    Args:
        ratio: Share of visual tokens that they keep.
        sites: In the order tokens pass them.
        keep: Count from 1 up, or below 1 share of the tokens that enter the site.
        geometry: The model.

    Raises:
        UsageError: A count that does not fit its site, or another ratio than the one given.
    """
    before = [site for site in sites if site.per_tile]
    later = [site for site in sites if not site.per_tile]
    vision = _count_by_hand(geometry.vision_tokens, before, keep)
    kept = vision[-1].tokens_out if vision else geometry.vision_tokens
    if geometry.square_tiles and math.isqrt(kept) ** 2 != kept:
        side = math.isqrt(kept)
        raise UsageError(
            f"site {vision[-1].site.name} keeps {kept} tokens of a tile, and this model packs its"
            f" tiles as squares; the nearest squares are {side * side} and {(side + 1) ** 2}"
        )
    layouts = []
    for layout in geometry.layouts:
        full, entering = full_count(layout, geometry), geometry.visual_tokens(layout, kept)
        counts = _count_by_hand(entering, later, keep)
        left = counts[-1].tokens_out if counts else entering
        layouts.append(layout_plan(layout, full, entering, counts, left / full))
    achieved = layouts[0].achieved
    if abs(ratio - achieved) > NEAR:
        raise UsageError(
            f"the counts of ratio {ratio:g} keep {layouts[0].tokens_out} of"
            f" {layouts[0].tokens_full} tokens; write ratio = {achieved:.3f}"
        )
    return BudgetPlan(ratio, tuple(vision), tuple(layouts))


def _count_by_hand(entering: int, sites: list[Site], keep: Mapping[Site, float]) -> list[SiteCount]:
    counts, left = [], entering
    for site in sites:
        given = keep[site]
        after = int(given) if given >= 1 else max(1, round(given * left))
        if after > left:
            raise UsageError(f"site {site.name} is to keep {after} tokens and only {left} enter it")
        counts.append(SiteCount(site, left, after))
        left = after
    return counts
