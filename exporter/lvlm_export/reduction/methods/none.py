"""No reduction: the baseline that every table needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from lvlm_export.reduction.method import Method

if TYPE_CHECKING:
    from lvlm_export.reduction.method import ReducerShape, Site


class NoReduction(Method):
    """Every visual token is kept; only ratio 1.0 can be built."""

    name = "none"
    summary = "keep every visual token (ratio 1.0 only)"
    paper = "-"
    cost = "nothing"
    acts_in = "nowhere"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return ()

    def selector(self, site: Site, shape: ReducerShape) -> NoReturn:
        raise AssertionError("method none has no sites")


METHOD = NoReduction()
