"""Ratio to integers: how many visual tokens stay at every site. Ints in, ints out, no torch.

A ratio is the share of visual tokens KEPT at the decoder's last layer. The total log-ratio is
shared between the vision encoder and the decoder as the method says (iLLaVA: 0.664 and 0.336),
so its published point, 729 -> 361 -> 253, comes out of ``--ratio 0.347`` exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lvlm_export.reduction import Method, Site
from lvlm_runtime.anyres import TileLayout
from lvlm_runtime.errors import UsageError


@dataclass(frozen=True)
class Geometry:
    """What the schedule needs to know of a model.

    Attributes:
        vision_layers: Vision layers that run (up to ``vision_feature_layer``).
        vision_tokens: Patch tokens of one tile (no CLS).
        text_layers: Decoder layers.
        layouts: The tile layouts of the bundle.
        square_tiles: Kept tokens of a tile must form a square grid (anyres packing).
        visual_tokens: ``(layout, kept per tile) -> tokens the decoder sees per image``.
    """

    vision_layers: int
    vision_tokens: int
    text_layers: int
    layouts: tuple[TileLayout, ...]
    square_tiles: bool
    visual_tokens: Callable[[TileLayout, int], int]


@dataclass(frozen=True)
class SiteCount:
    """Visual tokens before and after one site."""

    site: Site
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class LayoutPlan:
    """Decoder side of a budget, for one tile layout.

    Attributes:
        layout: Name of the layout.
        tokens_full: Visual tokens per image at ratio 1.0.
        tokens_in: Visual tokens per image that reach the decoder.
        projected: Count at the site before the decoder, where there is one.
        decoder: Counts at the decoder's sites.
        achieved: Share of visual tokens kept, after rounding: in the decoder's last layer, or the
            mean over its layers where the method withdraws them all.
    """

    layout: str
    tokens_full: int
    tokens_in: int
    projected: SiteCount | None
    decoder: tuple[SiteCount, ...]
    achieved: float

    @property
    def counts(self) -> tuple[SiteCount, ...]:
        """Counts at all sites after the projector, in order."""
        return self.decoder if self.projected is None else (self.projected, *self.decoder)

    @property
    def tokens_out(self) -> int:
        """Visual tokens per image in the decoder's last layer."""
        return self.decoder[-1].tokens_out if self.decoder else self.tokens_in


@dataclass(frozen=True)
class BudgetPlan:
    """One ratio turned into integers; empty counts mean that nothing is reduced there."""

    ratio: float
    vision: tuple[SiteCount, ...]
    layouts: tuple[LayoutPlan, ...]


def parse_ratio(text: str | float) -> float:
    """A ratio in (0, 1] from the command line.

    Raises:
        UsageError: Not a number, or outside (0, 1].
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
    vision = [site for site in sites if site.stage in ("vision", "features")]
    later = [site for site in sites if site.stage in ("projected", "decoder")]
    _check_reachable(ratio, method, vision, later, geometry)
    share = method.vision_share if vision and later else float(bool(vision))
    target = geometry.vision_tokens * ratio**share
    kept = None
    if vision:
        kept = _kept_per_tile(ratio, target, bool(later), geometry)
    counts = spread_evenly(geometry.vision_tokens, kept, vision) if kept is not None else ()
    layouts = tuple(
        _layout_plan(method, ratio, lay, tuple(later), geometry, kept) for lay in geometry.layouts
    )
    return BudgetPlan(ratio, counts, layouts)


def spread_evenly(tokens: int, kept: int, sites: list[Site]) -> tuple[SiteCount, ...]:
    """Remove ``tokens - kept`` over ``sites`` in equal shares; earlier sites take the remainder."""
    share, rest = divmod(tokens - kept, len(sites))
    counts, left = [], tokens
    for index, site in enumerate(sites):
        after = left - share - (index < rest)
        counts.append(SiteCount(site, left, after))
        left = after
    return tuple(counts)


def _kept_per_tile(ratio: float, target: float, decoder_follows: bool, geometry: Geometry) -> int:
    """Tokens that a tile keeps in the vision encoder: nearest count (or square) to the target."""
    if not geometry.square_tiles:
        return max(1, round(target))
    side = max(1, round(math.sqrt(target)))
    # A square below the target may leave fewer tokens than the ratio asks for in the end.
    while decoder_follows and any(
        geometry.visual_tokens(layout, side * side) < round(ratio * _full(layout, geometry))
        for layout in geometry.layouts
    ):
        side += 1
    return side * side


def _full(layout: TileLayout, geometry: Geometry) -> int:
    return geometry.visual_tokens(layout, geometry.vision_tokens)


def _layout_plan(
    method: Method,
    ratio: float,
    layout: TileLayout,
    sites: tuple[Site, ...],
    geometry: Geometry,
    kept: int | None = None,
) -> LayoutPlan:
    full = _full(layout, geometry)
    entering = full if kept is None else geometry.visual_tokens(layout, kept)
    final = 0 if method.withdraws else round(ratio * full)
    counts, left = [], entering
    for index, site in enumerate(sites, start=1):
        # Equal steps of the logarithm; the last one lands on the budget exactly.
        after = round(entering * (final / entering) ** (index / len(sites)))
        counts.append(SiteCount(site, left, after))
        left = after
    achieved = left / full
    if method.withdraws and sites:
        achieved = sites[-1].layer / geometry.text_layers
    projected = next((count for count in counts if count.site.stage == "projected"), None)
    return LayoutPlan(
        layout.name,
        full,
        entering if projected is None else projected.tokens_out,
        projected,
        tuple(count for count in counts if count.site.stage == "decoder"),
        achieved,
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
    smallest = max(1 / _full(layout, geometry) for layout in geometry.layouts)
    if (
        ratio < smallest / 2
        or round(ratio * min(_full(lay, geometry) for lay in geometry.layouts)) < 1
    ):
        raise UsageError(
            f"ratio {ratio} keeps less than one visual token; the nearest this model can reach is"
            f" {smallest:.4g}"
        )
