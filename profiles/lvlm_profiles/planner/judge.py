"""Which reductions meet a latency on a device and fit its memory, before anything is built.

Everything here is an estimate from shapes and a device profile, or from a report's measured
shares of it; what is known exactly are token counts, and weights and caches to within biases and
norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lvlm_profiles.cost.memory import KERNELS_PER_PROFILE, LIVE_TENSORS, Need, free_bytes
from lvlm_profiles.cost.request import kv_elements, table_elements, weight_elements
from lvlm_profiles.cost.roofline import Estimate, Rates, RatesError, Shares, estimate, rates_of
from lvlm_profiles.cost.units import precision_of
from lvlm_profiles.devices.device import Device
from lvlm_profiles.shapes.dims import ModelDims, TokenPath


@dataclass(frozen=True)
class Goal:
    """What is to be met.

    Attributes:
        device: Where.
        ttft_ms: Longest time to first token, or None.
        tpot_ms: Longest time per further token, or None.
        context_length: Positions of the model.
    """

    device: Device
    ttft_ms: float | None
    tpot_ms: float | None
    context_length: int


@dataclass(frozen=True)
class Candidate:
    """One method, ratio and precision.

    Attributes:
        method: Its name; ``none`` for the unreduced model.
        precision: Element type.
        ratio: Share of visual tokens kept, as asked for.
        achieved: After rounding.
        path: Tokens everywhere.
    """

    method: str
    precision: str
    ratio: float
    achieved: float
    path: TokenPath


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate.

    Attributes:
        candidate: It.
        estimate: Its times; None where the device profile has no rates for it.
        need: Memory.
        reasons: Why it does not do; empty where it fits.
    """

    candidate: Candidate
    estimate: Estimate | None
    need: Need
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """It meets everything that was asked for."""
        return not self.reasons


@dataclass(frozen=True)
class Speed:
    """How fast a device is.

    Attributes:
        shares: Of the roofline, by kind of stage.
        rates: What they are shares of; None for the device profile's.
        precision: The only one that ``rates`` are known at; None with the profile's.
    """

    shares: Shares
    rates: Rates | None = None
    precision: str | None = None

    def at(self, device: Device, precision: str) -> Rates:
        """Rates of a device at a precision; RatesError where they are not known."""
        if self.rates is None:
            return rates_of(device, precision)
        if precision != self.precision:
            raise RatesError(
                f"{device.title}: no published rates, and calibrated at {self.precision} only"
            )
        return self.rates


def judge_candidate(dims: ModelDims, candidate: Candidate, goal: Goal, speed: Speed) -> Verdict:
    """Estimate a candidate and say what it misses; of times only where the rates are known.

    Raises:
        LvlmError: Unknown precision.
    """
    need = memory_need(dims, candidate, goal.device)
    reasons = list(_memory_reasons(dims, need, candidate.path, goal))
    estimated = None
    # Where rates are not known only memory is judged.
    with suppress(RatesError):
        rates = speed.at(goal.device, candidate.precision)
        estimated = estimate(dims, candidate.path, candidate.precision, rates, speed.shares)
        reasons += _time_reasons(estimated, goal)
    return Verdict(candidate, estimated, need, tuple(reasons))


def best_verdict(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The one that fits and keeps most visual tokens; among equals the quickest."""
    fitting = [verdict for verdict in verdicts if verdict.fits]
    return max(fitting, key=_rank, default=None)


def nearest_verdict(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Of those that miss least things, the quickest, or the smallest where times are not known."""
    return min(
        verdicts,
        key=lambda each: (
            len(each.reasons),
            each.need.total if each.estimate is None else each.estimate.ttft_ms,
        ),
        default=None,
    )


def memory_need(dims: ModelDims, candidate: Candidate, device: Device) -> Need:
    """Memory of a request: weights and caches from shapes, kernels and activations estimated."""
    sizes, path = precision_of(candidate.precision), candidate.path
    # What is not quantised has the device's own type, and so have the scales of blocks.
    values = precision_of(device.defaults.precision).values if sizes.quantised else sizes.values
    tables = table_elements(dims.text)
    linear = (weight_elements(dims) - tables) * sizes.weight_bytes(values)
    rows = path.prompt_tokens(0)
    widest = max(
        path.tiles * (path.tower_tokens(dims.vision.tokens) + dims.vision.prefix) * dims.vision.mlp,
        rows * dims.text.mlp,
    )
    return Need(
        weights=round(linear + tables * sizes.tables),
        kernels=0 if device.target == "cpu" else _profiles(path) * KERNELS_PER_PROFILE,
        kv_cache=kv_elements(dims, path) * values,
        activations=LIVE_TENSORS * widest * values,
    )


def _profiles(path: TokenPath) -> int:
    """Optimisation profiles of a bundle with this budget alone: decoder graphs have two."""
    vision, decoder = len(path.at("vision", "features")) + 1, len(path.at("decoder")) + 1
    reducers = sum(cut.reduces for cut in path.cuts)
    return vision + 2 * decoder + reducers + path.packed + 2  # assemble and LM head


def _memory_reasons(dims: ModelDims, need: Need, path: TokenPath, goal: Goal) -> Iterable[str]:
    free = free_bytes(goal.device)
    if free is not None and need.total > free:
        yield f"needs {need.total / 1e9:.2f} GB of {free / 1e9:.2f} GB"
    # Kept tokens keep their positions, so what is merged in the tower still takes its own.
    own = (path.packed and not path.in_order) or path.condensed
    image = (
        path.images * path.image_tokens if own else path.tiles * dims.vision.tokens // path.group
    )
    positions = path.text_tokens + image + path.answer_tokens
    if positions > goal.context_length:
        yield f"takes {positions} positions and the model has {goal.context_length}"


def _time_reasons(estimated: Estimate, goal: Goal) -> Iterable[str]:
    if goal.ttft_ms is not None and estimated.ttft_ms > goal.ttft_ms:
        yield f"TTFT {estimated.ttft_ms / goal.ttft_ms:.2f} x the goal"
    if goal.tpot_ms is not None and estimated.tpot_ms > goal.tpot_ms:
        yield f"TPOT {estimated.tpot_ms / goal.tpot_ms:.2f} x the goal"


def _rank(verdict: Verdict) -> tuple[float, float]:
    """Ratio first; a thousandth is rounding of counts. Then time."""
    time = verdict.estimate.ttft_ms if verdict.estimate is not None else 0.0
    return round(verdict.candidate.ratio, 3), -time
