"""What the first token of a trial costs, from shapes: milliseconds where a device is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_export.advise.planning import Choices, candidate_of
from lvlm_export.advise.subject import Subject
from lvlm_export.tune.space import TrialPlan
from lvlm_profiles.cost.request import prefill_works, total
from lvlm_profiles.cost.roofline import RatesError, estimate
from lvlm_profiles.devices.device import Device
from lvlm_profiles.planner.judge import Speed
from lvlm_runtime.errors import UsageError

MILLISECONDS, SHARE = "ms", "of the unreduced FLOPs"


@dataclass(frozen=True)
class CostBasis:
    """What costs are counted with.

    Attributes:
        subject: The model.
        text_tokens: Text of a prompt.
        device: Where times are estimated for; None for the share of the unreduced model's FLOPs.
        precision: Element type there.
        speed: How fast it is.
    """

    subject: Subject
    text_tokens: int
    device: Device | None = None
    precision: str = "fp32"
    speed: Speed | None = None

    @property
    def unit(self) -> str:
        """Of a cost."""
        return SHARE if self.device is None else MILLISECONDS


def first_token_costs(
    basis: CostBasis, unreduced: TrialPlan, plans: Sequence[TrialPlan]
) -> dict[str, float]:
    """By the trial's name, what its first token costs; the unreduced one's under its own.

    Raises:
        UsageError: The device profile has no rates to estimate with.
    """
    choices = Choices((), (), False, (basis.precision,), basis.text_tokens, 1)
    dims = basis.subject.dims
    found = {}
    for plan in (unreduced, *plans):
        trial = plan.trial
        counted = candidate_of(basis.subject, choices, plan.method, plan.budget, basis.precision)
        path = counted.path
        if basis.device is None:
            found[trial.name] = float(total(prefill_works(dims, path)).flops)
            continue
        assert basis.speed is not None
        try:
            rates = basis.speed.at(basis.device, basis.precision)
        except RatesError as error:
            raise UsageError(
                f"{error}, so its times cannot be estimated; give --calibrate a report of lvlm-export"
                " profile from there, or leave --device out to count FLOPs"
            ) from None
        times = estimate(dims, path, basis.precision, rates, basis.speed.shares)
        found[trial.name] = times.ttft_ms
    if basis.device is None:
        whole = found[unreduced.trial.name]
        return {name: cost / whole for name, cost in found.items()}
    return found
