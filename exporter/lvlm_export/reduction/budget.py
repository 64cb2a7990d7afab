"""One ratio as integers: what a schedule gives and what it needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lvlm_export.reduction.method import Site
from lvlm_runtime.image.anyres import TileLayout


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
        projector: Name of a projector that needs every patch of a tile, or None.
        grid: Rows and columns of a picture's tokens where they need not be a square, else None.
        group: Patches that are one token.
    """

    vision_layers: int
    vision_tokens: int
    text_layers: int
    layouts: tuple[TileLayout, ...]
    square_tiles: bool
    visual_tokens: Callable[[TileLayout, int], int]
    projector: str | None = None
    grid: tuple[int, int] | None = None
    group: int = 1


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

    def kept_per_tile(self, full: int) -> int:
        """Patch tokens of a tile at the end of the vision encoder, of ``full`` that enter it."""
        return self.vision[-1].tokens_out if self.vision else full


def full_count(layout: TileLayout, geometry: Geometry) -> int:
    """Visual tokens per image at ratio 1.0."""
    return geometry.visual_tokens(layout, geometry.vision_tokens)


def layout_plan(
    layout: TileLayout, full: int, entering: int, counts: list[SiteCount], achieved: float
) -> LayoutPlan:
    """A layout's plan from the counts at all sites after the projector."""
    projected = next((count for count in counts if count.site.stage == "projected"), None)
    return LayoutPlan(
        layout.name,
        full,
        entering if projected is None else projected.tokens_out,
        projected,
        tuple(count for count in counts if count.site.stage == "decoder"),
        achieved,
    )
