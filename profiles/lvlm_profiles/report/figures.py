"""What a profile found: the numbers of ``report.json``, raw samples beside their statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lvlm_profiles.statistics import Summary


@dataclass(frozen=True)
class StageTime:
    """One stage of a request.

    Attributes:
        name: ``preprocess``, ``vision.0``, ``vision@2``, ``decoder.0``, ``lm_head`` …, or ``host``
            for the time between graph calls.
        phase: ``preprocess``, ``vision`` or ``prefill`` on the way to the first token, ``decode``
            for what happens once per further token.
        tokens: That entered it at a call.
        samples_ms: One per round; of ``decode`` the mean over the answer's further tokens.
        summary: Of the samples.
    """

    name: str
    phase: str
    tokens: int
    samples_ms: tuple[float, ...]
    summary: Summary


@dataclass(frozen=True)
class Metric:
    """A number per round, with its statistics."""

    samples: tuple[float, ...]
    summary: Summary


@dataclass(frozen=True)
class WallCheck:
    """The time to first token as reported, against a stopwatch around the same calls.

    Attributes:
        stopwatch_ms: Around calls that ask for one token.
        reported_ms: What the same calls report.
        difference: Median of ``stopwatch / reported - 1``.
    """

    stopwatch_ms: tuple[float, ...]
    reported_ms: tuple[float, ...]
    difference: float


@dataclass(frozen=True)
class MemoryFigures:
    """Memory at its highest, in a process of its own that asks one request at one budget.

    Attributes:
        kind: ``resident`` (the process on the CPU), ``device`` (GPU memory in use) or ``unified``
            (a Jetson's memory in use); the last two hold what other programs use too.
        peak_bytes: The highest reading during the request.
        load_peak_bytes: The highest reading while the bundle was loaded.
        process_bytes: The reading before the bundle was loaded: interpreter and libraries, and
            what other programs hold.
        weights_bytes: What loading added: weights and graphs, as far as they are in memory.
        kv_cache_bytes: As allocated for this request.
        activations_bytes: The rest of the peak: activations, arenas, and weights touched late.
    """

    kind: str
    peak_bytes: int
    load_peak_bytes: int
    process_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int


@dataclass(frozen=True)
class Energy:
    """Energy of requests asked one after the other, apart from the timed rounds.

    Attributes:
        source: What was read.
        scope: What the reading covers.
        requests: That were asked.
        seconds: That they took.
        joules_per_request: Mean.
        joules_per_token: Per answer token, the prompt's share included.
        mean_watts: While they ran.
        idle_watts: Just before; null where not read.
        temperature_c: Of the hottest sensor afterwards; null where there is none.
    """

    source: str
    scope: str
    requests: int
    seconds: float
    joules_per_request: float
    joules_per_token: float
    mean_watts: float
    idle_watts: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Accuracy:
    """A row of an eval result: all kinds together at one ratio, with its 95 % interval."""

    questions: int
    right: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Predicted:
    """What the cost model says, from shapes alone.

    Attributes:
        flops: Of the first token: vision encoder, prefill and head.
        speedup: ``flops`` at the reference budget over ``flops`` here.
        device: Device profile that the roofline is of; null where none was given.
        roofline_ms: Least time that the device could take; null likewise.
        roofline_share: ``roofline_ms`` over the measured median; null likewise.
    """

    flops: float
    speedup: float
    device: str | None
    roofline_ms: float | None
    roofline_share: float | None


@dataclass(frozen=True)
class StageTokens:
    """Visual tokens at one stage, all images together."""

    stage: str
    tokens: int


@dataclass(frozen=True)
class BudgetFigures:
    """What one budget costs.

    Attributes:
        ratio: Share of visual tokens kept, as asked for.
        achieved: The share after rounding.
        visual_tokens: At every stage.
        path: Token counts as the cost model takes them; null without images.
        prompt_tokens: Positions of the prompt before reduction in the decoder.
        first_request_ms: Time to first token of this budget's first request in the process.
        ttft_ms: Time to first token: the sum of its stages in every phase but ``decode``.
        tpot_ms: Time per further token; null for answers of one token.
        tokens_per_s: Further tokens per second; null likewise.
        end_to_end_ms: From the call to the whole answer.
        stages: In the order they run.
    """

    ratio: float
    achieved: float
    visual_tokens: tuple[StageTokens, ...]
    path: dict[str, Any] | None
    prompt_tokens: int
    first_request_ms: float
    ttft_ms: Metric
    tpot_ms: Metric | None
    tokens_per_s: Metric | None
    end_to_end_ms: Metric
    stages: tuple[StageTime, ...]
    wall_check: WallCheck
    memory: MemoryFigures | None
    energy: Energy | None
    accuracy: Accuracy | None
    predicted: Predicted | None


@dataclass(frozen=True)
class SweepPoint:
    """A subgraph at one token count.

    Attributes:
        least_ms: Of the samples; other programs can only delay a call, so it shows steps best.
    """

    tokens: int
    samples_ms: tuple[float, ...]
    median_ms: float
    least_ms: float


@dataclass(frozen=True)
class Sweep:
    """Latency of a weighted subgraph over its token count.

    Attributes:
        stage: The subgraph.
        points: In ascending order of tokens.
        knee: Token count above which each token costs more than below; null where the curve is
            straight within the noise.
        steps: Token counts at which latency jumps.
    """

    stage: str
    points: tuple[SweepPoint, ...]
    knee: int | None
    steps: tuple[int, ...]
