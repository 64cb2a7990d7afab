"""Time from shapes: what a device could do at best, and what programs reach of it.

The roofline of some work is the longer of its arithmetic at the peak rate and its traffic at the
full bandwidth (Williams et al., 2009, doi:10.1145/1498765.1498785). No program reaches it; the
estimate divides it by the share that stages of its kind are known, or were measured, to reach.
Latency over token count is stepped on real devices; an estimate is smooth, so near a step it is
wrong by the step. Whatever comes from here is an estimate and is called one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lvlm_profiles.cost.request import (
    Amount,
    ModelDims,
    TokenPath,
    Work,
    decode_works,
    prefill_works,
)
from lvlm_profiles.cost.units import precision_of
from lvlm_profiles.devices.device import Device
from lvlm_profiles.errors import LvlmError

VISION, PREFILL, DECODE, HEAD, REDUCER, COPY = (
    *("vision", "prefill", "decode", "lm_head", "reducer", "copy"),
)
KINDS = (VISION, PREFILL, DECODE, HEAD, REDUCER, COPY)
COPIES = ("packer", "embedding", "assemble")


class RatesError(LvlmError):
    """A device profile without the figures for an estimate; the message is one line."""


@dataclass(frozen=True)
class Rates:
    """What a device does at best.

    Attributes:
        flops_per_s: Peak rate of dense arithmetic at a precision.
        bytes_per_s: Memory bandwidth.
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Shares:
    """The share of the roofline that each kind of stage reaches, in (0, 1].

    Attributes:
        by_kind: Kind -> share, all of ``KINDS``.
        source: Where they come from.
        call_ms: Fixed time of every graph call, which small models are made of.
    """

    by_kind: Mapping[str, float]
    source: str
    call_ms: float = 0.0


# At or a little below what published latencies work out to with this cost model, which a test
# repeats: TensorRT Edge-LLM 0.9 on AGX Orin 64 GB and Orin NX 16 GB, Qwen3-VL-4B with 4-bit
# weights: vision 0.49 and 0.65, prefill 0.41 and 0.59, decode 0.55 and 0.65 of the roofline.
PUBLISHED = Shares(
    {VISION: 0.45, PREFILL: 0.40, DECODE: 0.55, HEAD: 0.55, REDUCER: 0.20, COPY: 0.20},
    "vision, prefill and decode from TensorRT Edge-LLM's published latencies on Orin; 0.2 for"
    " reducers and copies is an assumption",
)


@dataclass(frozen=True)
class StageEstimate:
    """A graph call.

    Attributes:
        phase: ``vision``, ``prefill`` or ``decode``.
        graph: As the runtime's recorder names it.
        roofline_ms: The least it can take.
        ms: What it is estimated to take.
    """

    phase: str
    graph: str
    roofline_ms: float
    ms: float


@dataclass(frozen=True)
class Estimate:
    """A request, estimated.

    Attributes:
        first_token: Graph calls up to the first token; preparing pictures is not among them.
        further_token: Graph calls of one further token, half way through the answer.
    """

    first_token: tuple[StageEstimate, ...]
    further_token: tuple[StageEstimate, ...]

    @property
    def ttft_ms(self) -> float:
        """Time to first token: vision, prefill and LM head."""
        return sum(stage.ms for stage in self.first_token)

    @property
    def tpot_ms(self) -> float:
        """Time per further token."""
        return sum(stage.ms for stage in self.further_token)

    def phase_ms(self, phase: str) -> float:
        """Of the time to first token, what one phase takes."""
        return sum(stage.ms for stage in self.first_token if stage.phase == phase)


def kind_of(work: Work) -> str:
    """Which share applies, one of ``KINDS``."""
    if work.part in COPIES:
        return COPY
    return work.part if work.part in (REDUCER, HEAD) else work.phase


def rates_of(device: Device, precision: str) -> Rates:
    """A device's peak rates at a precision.

    Raises:
        RatesError: The profile lacks one; says which and why.
        LvlmError: Unknown precision.
    """
    field = precision_of(precision).rate
    for name in (field, "bandwidth_gb_s"):
        figure = getattr(device, name)
        if figure.value is None:
            raise RatesError(f"{device.title}: no {name} in the device profile ({figure.source})")
    return Rates(getattr(device, field).value * 1e12, device.bandwidth_gb_s.value * 1e9)  # type: ignore[operator]


def roofline_ms(amount: Amount, precision: str, rates: Rates) -> float:
    """The least time some work can take."""
    arithmetic = amount.flops / rates.flops_per_s
    return 1e3 * max(arithmetic, amount.size_bytes(precision) / rates.bytes_per_s)


def device_roofline_ms(amount: Amount, precision: str, device: Device) -> float | None:
    """As ``roofline_ms`` for a device profile; None where it has no rate for it."""
    try:
        return roofline_ms(amount, precision, rates_of(device, precision))
    except RatesError:
        return None


def estimate(
    dims: ModelDims, path: TokenPath, precision: str, rates: Rates, shares: Shares
) -> Estimate:
    """Time of every graph call of a request.

    Raises:
        LvlmError: Unknown precision.
    """
    half = max(0, path.answer_tokens - 2) // 2
    return Estimate(
        _stages(prefill_works(dims, path), precision, rates, shares),
        _stages(decode_works(dims, path, half), precision, rates, shares),
    )


def _stages(
    works: Iterable[Work], precision: str, rates: Rates, shares: Shares
) -> tuple[StageEstimate, ...]:
    """Parts of one graph call run one after another, so their times add up."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for work in works:
        least = roofline_ms(work.amount, precision, rates)
        # The token table is read by the host, without a graph.
        fixed = 0.0 if work.part == "embedding" else shares.call_ms
        before = found.get((work.phase, work.graph), (0.0, fixed))
        share = shares.by_kind[kind_of(work)]
        found[work.phase, work.graph] = before[0] + least, before[1] + least / share
    return tuple(StageEstimate(*key, *times) for key, times in found.items())
