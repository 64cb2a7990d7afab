"""Does a method fit a model? Refusals before anything is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.budget import BudgetPlan, Geometry
from lvlm_export.reduction.method import Method
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.families import ModelShape


def geometry_of(shape: ModelShape) -> Geometry:
    """What the schedule needs to know of a model."""
    return Geometry(
        vision_layers=shape.vision.layers,
        vision_tokens=shape.vision.tokens,
        text_layers=shape.text.layers,
        layouts=shape.layouts,
        square_tiles=shape.square_tiles,
        visual_tokens=shape.visual_tokens,
        projector=_needs_every_patch(shape),
        grid=shape.vision.grid,
        group=shape.vision.group,
    )


def _needs_every_patch(shape: ModelShape) -> str | None:
    """Name of a projector that takes only unreduced tokens of the tower, or None."""
    if shape.projector is not None:
        return shape.projector.kind
    # Features of an earlier layer would still have the tokens that a later one dropped or merged.
    return "multi-layer" if shape.vision.levels > 1 else None


def check_fit(method: Method, geometry: Geometry, prefix: int, packed: bool) -> None:
    """Refuse a method that would not do on a model what its paper does.

    Args:
        method: The method.
        geometry: How the model's tokens are counted.
        prefix: Leading tokens of its tower that are no patches, 1 for CLS.
        packed: Its projected tiles go through a packer.

    Raises:
        UsageError: Says why it does not fit.
    """
    if method.needs_cls and not prefix:
        raise UsageError(
            f"method {method.name} needs the CLS token of a CLIP tower and this model's tower has"
            " none; lvlm-export list methods says which methods do without"
        )
    if method.appends and geometry.square_tiles:
        raise UsageError(
            f"method {method.name} appends a token that has no place in a tile's grid, and this"
            " model packs its tiles as grids; lvlm-export list methods says which methods fit"
        )
    if geometry.grid is not None:
        _check_places(method)
    if geometry.group > 1 and method.keeps_square:
        raise UsageError(
            f"method {method.name} makes pictures smaller, and this model's tower joins patches in"
            " groups that a smaller picture need not have; lvlm-export list methods says which"
            " methods fit"
        )


def _check_places(method: Method) -> None:
    """Refuse what a tower that takes pictures of any size has no places for."""
    if method.keeps_square or method.appends:
        does = (
            "makes pictures smaller" if method.keeps_square else "appends a token without a place"
        )
        raise UsageError(
            f"method {method.name} {does}, and this model's tower asks every token for its place in"
            " a picture of one size; lvlm-export list methods says which methods fit"
        )


def check_rank(method: Method, budget: BudgetPlan, width: int) -> None:
    """Refuse a budget whose last tokens a method would choose by rounding.

    Args:
        method: The method.
        budget: Its counts on a model.
        width: Of the projected tokens.

    Raises:
        UsageError: Says how many tokens are too many.
    """
    if not method.needs_rank:
        return
    for part in budget.layouts:
        if part.projected is not None and part.projected.tokens_out > width:
            raise UsageError(
                f"method {method.name} can distinguish at most as many tokens as the model is wide,"
                f" {width}, and ratio {budget.ratio:g} keeps {part.projected.tokens_out} of a picture's"
                f" {part.tokens_full}; take a smaller ratio or another method"
            )
