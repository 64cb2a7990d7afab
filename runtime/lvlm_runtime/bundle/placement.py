"""What of a bundle's reduction was placed by hand; empty where method and ratio decided it all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HandBudget:
    """Counts by hand for one ratio.

    Attributes:
        ratio: The ratio that the counts land on.
        keep: Site -> what stays there: a count from 1 up, or below 1 a share of the tokens that
            enter it. The sites of this ratio are these and no others.
    """

    ratio: float
    keep: dict[str, float]


@dataclass(frozen=True)
class HandPlacement:
    """What a user decided instead of the method.

    Attributes:
        sites: Names of the sites, ``vision@5``; empty for the method's own.
        vision_share: Share of the log-ratio that sites before the decoder carry; None for the
            method's own.
        budgets: Ratios whose counts were given by hand.
    """

    sites: tuple[str, ...] = ()
    vision_share: float | None = None
    budgets: tuple[HandBudget, ...] = ()


# Nothing by hand.
AS_PUBLISHED = HandPlacement()
