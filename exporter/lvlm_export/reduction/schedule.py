"""Ratio to integers: how many visual tokens stay at every site. Ints in, ints out, no torch.

A ratio is the share of visual tokens KEPT at the decoder's last layer. The total log-ratio is
divided between the vision encoder and the decoder by the method (iLLaVA: 0.607 and 0.393), so its
published point, 729 -> 381 -> 250, is exactly ``--ratio 0.3425``.
"""

from __future__ import annotations

import math

from lvlm_export.reduction.budget import (
    BudgetPlan,
    Geometry,
    LayoutPlan,
    SiteCount,
    full_count,
    layout_plan,
)
from lvlm_export.reduction.method import Method, Site
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.anyres import TileLayout


def parse_ratio(text: str | float) -> float:
    """A ratio in (0, 1] from the command line.

    Raises:
        UsageError: Not a number, or outside (0, 1].

    Example:
        >>> parse_ratio("0.33")
        0.33
    """
    hint = "a ratio is the share of visual tokens KEPT, a number in (0, 1], for example 0.33"
    try:
        ratio = float(text)
    except ValueError:
        raise UsageError(f"ratio {text!r} is not a number; {hint}") from None
    if not 0.0 < ratio <= 1.0:
        raise UsageError(f"ratio {text} is outside (0, 1]; {hint}")
    return ratio


def plan_budget(ratio: float, method: Method, geometry: Geometry) -> BudgetPlan:
    """Counts at every site of ``method`` for one ratio.

    Raises:
        UsageError: The ratio cannot be reached on this model; names the nearest that can.
    """
    if ratio == 1.0:
        layouts = tuple(_layout_plan(method, ratio, lay, (), geometry) for lay in geometry.layouts)
        return BudgetPlan(1.0, (), layouts)
    sites = method.sites(geometry.vision_layers, geometry.text_layers, ratio)
    _check_whole(method, sites, geometry)
    by_hand = method.by_hand(ratio)
    if by_hand is not None:
        from lvlm_export.reduction.by_hand import plan_by_hand

        return plan_by_hand(ratio, sites, by_hand, geometry)
    vision = [site for site in sites if site.per_tile]
    later = [site for site in sites if not site.per_tile]
    _check_reachable(ratio, method, vision, later, geometry)
    share = method.vision_share if vision and later else float(bool(vision))
    target = geometry.vision_tokens * ratio**share
    kept: int | None = None
    counts: tuple[SiteCount, ...] = ()
    if vision:
        kept = _kept_per_tile(ratio, target, bool(later), method, geometry)
        counts = _vision_counts(method, geometry.vision_tokens, kept, vision)
    layouts = tuple(
        _layout_plan(method, ratio, lay, tuple(later), geometry, kept) for lay in geometry.layouts
    )
    return BudgetPlan(ratio, counts, layouts)


def _vision_counts(
    method: Method, tokens: int, kept: int, sites: list[Site]
) -> tuple[SiteCount, ...]:
    """The method's own counts per tile, or equal removals."""
    own = method.vision_counts(tokens, kept, len(sites))
    if own is None:
        return spread_evenly(tokens, kept, sites)
    return tuple(map(SiteCount, sites, (tokens, *own), own))


def spread_evenly(tokens: int, kept: int, sites: list[Site]) -> tuple[SiteCount, ...]:
    """Remove ``tokens - kept`` over ``sites`` in equal shares; earlier sites take the remainder."""
    share, rest = divmod(tokens - kept, len(sites))
    counts, left = [], tokens
    for index, site in enumerate(sites):
        after = left - share - (index < rest)
        counts.append(SiteCount(site, left, after))
        left = after
    return tuple(counts)


def _kept_per_tile(
    ratio: float, target: float, decoder_follows: bool, method: Method, geometry: Geometry
) -> int:
    """Tokens that a tile keeps in the vision encoder: nearest count (or square) to the target."""
    least = method.least_of_tile(geometry.vision_tokens)
    if not (geometry.square_tiles or method.keeps_square):
        return max(least, round(target))
    side = max(math.isqrt(least - 1) + 1, round(math.sqrt(target)))
    # A square below the target may leave fewer tokens than the ratio needs at the end.
    while decoder_follows and any(
        geometry.visual_tokens(layout, side * side) < round(ratio * full_count(layout, geometry))
        for layout in geometry.layouts
    ):
        side += 1
    whole = math.isqrt(geometry.vision_tokens)
    if method.keeps_square and side >= whole:
        raise UsageError(
            f"method {method.name} keeps a square of a tile's {whole} x {whole} tokens and ratio"
            f" {ratio:g} keeps all of them; the nearest it can reach is"
            f" {(whole - 1) ** 2 / whole**2:.4g}"
        )
    return side * side


def _layout_plan(
    method: Method,
    ratio: float,
    layout: TileLayout,
    sites: tuple[Site, ...],
    geometry: Geometry,
    kept: int | None = None,
) -> LayoutPlan:
    full = full_count(layout, geometry)
    entering = full if kept is None else geometry.visual_tokens(layout, kept)
    final = 0 if method.withdraws else round(ratio * full)
    counts, left = [], entering
    steps = _steps(method, ratio, sites, kept is None)
    # Where nothing left before, by the ratio as it was asked for: a method before the decoder then
    # gives it as many tokens as one in the vision encoder.
    rest = ratio if kept is None else final / entering
    for site, done in zip(sites, steps, strict=True):
        # Equal steps of the logarithm unless the method has its own; the last meets the budget.
        after = final if site == sites[-1] else round(entering * rest**done)
        counts.append(SiteCount(site, left, after))
        left = after
    achieved = left / full
    if method.withdraws and sites:
        achieved = sites[-1].layer / geometry.text_layers
    return layout_plan(layout, full, entering, counts, achieved)


def _steps(method: Method, ratio: float, sites: tuple[Site, ...], whole: bool) -> list[float]:
    """Part of the remaining logarithm that is done after each site past the projector.

    ``whole``: nothing was reduced before, so the site before the decoder carries the share of the
    method.
    """
    decoder = sum(site.stage == "decoder" for site in sites)
    before = len(sites) - decoder
    first = 0.0
    if before:
        first = method.vision_share if whole and decoder else before / len(sites)
    inside = method.log_shares(ratio, decoder) if decoder else ()
    return [first * (index + 1) / before for index in range(before)] + [
        first + (1 - first) * done for done in inside
    ]


def _check_whole(method: Method, sites: tuple[Site, ...], geometry: Geometry) -> None:
    early = [site.name for site in sites if site.per_tile]
    if geometry.projector is not None and early:
        raise UsageError(
            f"method {method.name} acts at {early[0]}, before the model's {geometry.projector}"
            " projector, which needs every patch; take a method that acts after it, or --ratio 1"
        )


def _check_reachable(
    ratio: float, method: Method, vision: list[Site], later: list[Site], geometry: Geometry
) -> None:
    decoder = [site for site in later if site.stage == "decoder"]
    if not vision and not later:
        raise UsageError(
            f"method {method.name} cannot reach ratio {ratio}; the nearest it can is 1.0"
        )
    if any(site.layer >= geometry.text_layers for site in decoder):
        raise UsageError(
            f"method {method.name} needs a decoder layer after its site at layer"
            f" {decoder[-1].layer}, but the model has {geometry.text_layers}; the nearest ratio it"
            " can reach is 1.0"
        )
    smallest = max(1 / full_count(layout, geometry) for layout in geometry.layouts)
    if (
        ratio < smallest / 2
        or round(ratio * min(full_count(lay, geometry) for lay in geometry.layouts)) < 1
    ):
        raise UsageError(
            f"ratio {ratio} keeps less than one visual token; the nearest this model can reach is"
            f" {smallest:.4g}"
        )
