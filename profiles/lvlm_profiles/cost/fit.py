"""Fitting the shares of the roofline to measured stages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lvlm_profiles.cost.request import Amount
from lvlm_profiles.cost.roofline import (
    COPY,
    DECODE,
    HEAD,
    KINDS,
    PREFILL,
    REDUCER,
    VISION,
    Rates,
    Shares,
    roofline_ms,
)
from lvlm_profiles.errors import LvlmError

# Whose share stands in for a kind that a report has no stage of; at least one always has.
STAND_IN = {
    VISION: PREFILL,
    PREFILL: VISION,
    DECODE: HEAD,
    HEAD: DECODE,
    REDUCER: COPY,
    COPY: REDUCER,
}
# Share of the measured time from which a stage is reported as the worst.
LONG = 0.01
# Below this part of the sums there is but rounding; and how much of a kind may be fixed time.
NOTHING, MOST_FIXED = 1e-9, 0.95


@dataclass(frozen=True)
class Measured:
    """A graph call that was timed.

    Attributes:
        kind: One of ``roofline.KINDS``.
        name: For people.
        amount: What it costs.
        median_ms: What it took.
    """

    kind: str
    name: str
    amount: Amount
    median_ms: float


@dataclass(frozen=True)
class Fit:
    """Fitted shares and how well they explain the measurements.

    Attributes:
        rates: What the shares are shares of.
        shares: The fit.
        error: Root mean square of ``estimate / measured - 1``, weighted by time, over all stages.
        worst: Largest of them, signed, among stages of at least 1 % of the measured time.
        worst_stage: Whose it is.
    """

    rates: Rates
    shares: Shares
    error: float
    worst: float
    worst_stage: str


def best_seen(measured: Iterable[Measured], precision: str) -> Rates:
    """Rates for a device that has no published ones: the best that any stage reached.

    Raises:
        LvlmError: There are no arithmetic and no memory-bound stages.
    """
    timed = [each for each in measured if each.median_ms > 0]
    heavy = [each for each in timed if each.kind in (VISION, PREFILL, DECODE, HEAD)]
    flops = max((1e3 * each.amount.flops / each.median_ms for each in heavy), default=0.0)
    traffic = [1e3 * each.amount.size_bytes(precision) / each.median_ms for each in heavy]
    if not flops or not max(traffic, default=0.0):
        raise LvlmError("the report has no timed stage with a known cost; profile the bundle again")
    return Rates(flops, max(traffic))


def fit_shares(
    measured: Sequence[Measured], precision: str, rates: Rates, source: str, default: Shares
) -> Fit:
    """Least squares of relative errors: a share per kind and one fixed time for every graph call.

    With r the roofline and t the measured time of a stage, c and the x of its kind minimise
    ``sum t (1 - (c + x r) / t)²``, so long stages count more; the share is 1/x and c is not
    negative. A kind of which stages have one size only says nothing about c.

    Args:
        measured: Timed graph calls.
        precision: They ran at.
        rates: What shares are of.
        source: Where the measurements come from, for people.
        default: For kinds that nothing was measured of.

    Raises:
        LvlmError: Nothing to fit.
    """
    usable = [each for each in measured if each.median_ms > 0 and _least(each, precision, rates)]
    if not usable:
        raise LvlmError("the report has no timed stage with a known cost; profile the bundle again")
    sums = {
        kind: _sums([each for each in usable if each.kind == kind], precision, rates)
        for kind in KINDS
        if any(each.kind == kind for each in usable)
    }
    call_ms = _call_ms(list(sums.values()))
    found = {kind: each.vv / (each.v - call_ms * each.uv) for kind, each in sums.items()}
    by_kind = {
        kind: found.get(kind, found.get(STAND_IN[kind], default.by_kind[kind])) for kind in KINDS
    }
    errors = [
        (call_ms + _least(each, precision, rates) / by_kind[each.kind]) / each.median_ms - 1
        for each in usable
    ]
    time = sum(each.median_ms for each in usable)
    pairs = list(zip(usable, errors, strict=True))
    error = math.sqrt(sum(each.median_ms * value**2 for each, value in pairs) / time)
    long = [(each, value) for each, value in pairs if each.median_ms >= LONG * time]
    stage, worst = max(long or pairs, key=lambda pair: abs(pair[1]))
    return Fit(rates, Shares(by_kind, source, call_ms), error, worst, stage.name)


@dataclass(frozen=True)
class _Sums:
    """Sums over a kind's stages, weighted by time, of u = 1/t and v = r/t."""

    u: float
    v: float
    uu: float
    uv: float
    vv: float


def _sums(stages: Sequence[Measured], precision: str, rates: Rates) -> _Sums:
    terms = [
        (each.median_ms, 1 / each.median_ms, _least(each, precision, rates) / each.median_ms)
        for each in stages
    ]
    return _Sums(
        u=sum(t * u for t, u, _ in terms),
        v=sum(t * v for t, _, v in terms),
        uu=sum(t * u * u for t, u, _ in terms),
        uv=sum(t * u * v for t, u, v in terms),
        vv=sum(t * v * v for t, _, v in terms),
    )


def _call_ms(sums: Sequence[_Sums]) -> float:
    """The fixed time, after each kind's own factor is eliminated: ``x = (v - c uv) / vv``."""
    rest = sum(each.uu - each.uv**2 / each.vv for each in sums)
    if rest <= NOTHING * sum(each.uu for each in sums):
        return 0.0
    found = sum(each.u - each.uv * each.v / each.vv for each in sums) / rest
    # A share is positive, so no kind may be all fixed time.
    most = min(each.v / each.uv for each in sums)
    return min(max(0.0, found), MOST_FIXED * most)


def _least(measured: Measured, precision: str, rates: Rates) -> float:
    return roofline_ms(measured.amount, precision, rates)
