"""What the cost model says of a bundle's budgets, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lvlm_profiles.cost.request import Work, by_graph, prefill_works, total
from lvlm_profiles.cost.roofline import device_roofline_ms
from lvlm_profiles.devices.device import Device
from lvlm_profiles.missing import Missing
from lvlm_profiles.report.figures import Predicted
from lvlm_profiles.report.subject import Request
from lvlm_profiles.shapes.dims import TokenPath
from lvlm_runtime.bundle.manifest import Budget, Manifest
from lvlm_runtime.bundle.token_path import token_path


@dataclass(frozen=True)
class Cost:
    """Of one budget.

    Attributes:
        path: Token counts at every place of the chain.
        flops: Of everything up to the first token.
        speedup: ``flops`` of the reference over ``flops``.
        device: The device profile of the roofline; None without one.
        roofline_ms: Least time of all graph calls together on that device; None likewise, Missing
            where the profile has no rates.
    """

    path: TokenPath
    flops: float
    speedup: float
    device: str | None
    roofline_ms: float | Missing | None

    def beside(self, measured_ms: float) -> Predicted:
        """As a report holds it, beside the measured median."""
        roofline_ms = None if isinstance(self.roofline_ms, Missing) else self.roofline_ms
        share = None if roofline_ms is None else roofline_ms / measured_ms
        return Predicted(self.flops, self.speedup, self.device, roofline_ms, share)


def predict_costs(
    manifest: Manifest,
    ratios: Sequence[float],
    reference: float,
    request: Request,
    device: Device | None = None,
) -> dict[float, Cost] | Missing:
    """Ratio -> cost, or why there is none.

    Args:
        manifest: Of the bundle.
        ratios: Its budgets.
        reference: The one that speed-ups are counted from.
        request: What is asked.
        device: For the roofline; None for none.
    """
    if request.layout is None:
        return Missing("without pictures every budget costs the same")
    paths = {ratio: _path(manifest, _budget(manifest, ratio), request) for ratio in ratios}
    works = {ratio: prefill_works(manifest.dims, path) for ratio, path in paths.items()}
    flops = {ratio: float(total(each).flops) for ratio, each in works.items()}
    return {
        ratio: Cost(
            path,
            flops[ratio],
            flops[reference] / flops[ratio],
            None if device is None else device.name,
            None if device is None else _roofline_ms(works[ratio], manifest.precision, device),
        )
        for ratio, path in paths.items()
    }


def _roofline_ms(works: Iterable[Work], precision: str, device: Device) -> float | Missing:
    """Graph calls follow one another, so their rooflines add up."""
    each = [device_roofline_ms(amount, precision, device) for amount in by_graph(works).values()]
    known = [value for value in each if value is not None]
    if len(known) < len(each):
        return Missing(f"{device.name} has no published rate or bandwidth for {precision}")
    return sum(known)


def _budget(manifest: Manifest, ratio: float) -> Budget:
    return next(each for each in manifest.budgets if abs(each.ratio - ratio) < 1e-9)


def _path(manifest: Manifest, budget: Budget, request: Request) -> TokenPath:
    part = budget.layout(request.layout or "")
    images = len(request.images)
    return token_path(manifest, budget, part, request.text_tokens, request.answer_tokens, images)
