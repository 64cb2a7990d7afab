"""Measuring a session: budgets in interleaved rounds, after a warm-up that lasts until times settle.

A round asks every budget once, and each round begins with another budget, so that drifting clocks
and other programs meet all budgets alike. Every request answers exactly as many tokens as asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from lvlm_runtime.backends.clock import clock_of
from lvlm_runtime.chain.recorder import Recorder, Span
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.profile.options import ITERATIONS, ProfileOptions
from lvlm_runtime.session import Generation, Session

# Warm-up ends when a budget's last times to first token lie this close together, or at the limit.
SETTLED, WINDOW, WARMUP_LIMIT = 0.05, 3, 10
# Fewest rounds of a measurement that is limited by time, and calls of the stopwatch check.
LEAST_ROUNDS, CHECKS = 5, 3
PREFILL, DECODE, HOST = "prefill", "decode", "host"
# Called with the round's name and the ratio of the request that is over.
OnRequest = Callable[[str, float], None]


@dataclass(frozen=True)
class TimedAnswer:
    """One request.

    Attributes:
        generation: What it gave back.
        spans: Graph calls and steps of the host, in order.
        wall_ms: Around the call, from outside.
    """

    generation: Generation
    spans: tuple[Span, ...]
    wall_ms: float

    @property
    def ttft_ms(self) -> float:
        """Time to first token."""
        return self.generation.time_to_first_token_ms

    @property
    def tpot_ms(self) -> float | None:
        """Time per further token; None for an answer of one token."""
        speed = self.generation.decode_tokens_per_s
        return None if speed is None else 1e3 / speed

    @property
    def end_to_end_ms(self) -> float:
        """From the call to the last token."""
        further = len(self.generation.token_ids) - 1
        return self.ttft_ms + further * (self.tpot_ms or 0.0)

    def stages(self) -> dict[tuple[str, str], tuple[int, float]]:
        """``(phase, stage)`` -> tokens and milliseconds; decode per further token.

        The stages of all phases but ``decode`` sum up to ``ttft_ms`` and those of ``decode`` to
        ``tpot_ms``: ``host`` is what lies between the graph calls and steps.
        """
        further = len(self.generation.token_ids) - 1
        sums: dict[tuple[str, str], tuple[int, float]] = {}
        for span in self.spans:
            if span.phase == DECODE and further == 0:
                continue
            share = span.duration_ms / (further if span.phase == DECODE else 1)
            tokens, sofar = sums.get((span.phase, span.name), (span.tokens, 0.0))
            sums[span.phase, span.name] = (tokens, sofar + share)
        decode_ms = sum(ms for (phase, _), (_, ms) in sums.items() if phase == DECODE)
        first_ms = sum(ms for _, ms in sums.values()) - decode_ms
        first = {key: value for key, value in sums.items() if key[0] != DECODE}
        first[PREFILL, HOST] = (0, self.ttft_ms - first_ms)
        further_ones = {key: value for key, value in sums.items() if key[0] == DECODE}
        if self.tpot_ms is not None:
            further_ones[DECODE, HOST] = (0, self.tpot_ms - decode_ms)
        return first | further_ones


@dataclass
class Measurement:
    """Everything that was timed.

    Attributes:
        samples: Ratio -> one sample per measured round.
        first: Ratio -> the first request of the process at this ratio.
        warmup_rounds: Rounds that were not counted.
        stable: The warm-up ended because times had settled.
        checks: Ratio -> (stopwatch, reported) milliseconds of calls for one token.
        seconds: From the first warm-up round to the last measured one.
    """

    samples: dict[float, list[TimedAnswer]] = field(default_factory=dict)
    first: dict[float, TimedAnswer] = field(default_factory=dict)
    warmup_rounds: int = 0
    stable: bool = True
    checks: dict[float, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0


def measure_rounds(
    session: Session, options: ProfileOptions, on_request: OnRequest = lambda *_: None
) -> Measurement:
    """Warm up, measure interleaved rounds, and check the times with a stopwatch.

    Args:
        session: The model that answers.
        options: ``for_bundle`` of its bundle: the ratios are named.
        on_request: Called after every request.

    Raises:
        UsageError: A ratio that the bundle does not have.
        LvlmError: The request does not fit.
    """
    timings = Measurement({ratio: [] for ratio in options.ratios})
    start = time.perf_counter()
    _warm_up(session, options, timings, on_request)
    for number in _rounds(options):
        for ratio in rotated(options.ratios, number):
            sample = time_request(session, options, ratio, options.answer_tokens)
            timings.first.setdefault(ratio, sample)
            timings.samples[ratio].append(sample)
            on_request("measuring", ratio)
    timings.seconds = time.perf_counter() - start
    for number in range(CHECKS):
        for ratio in rotated(options.ratios, number):
            one = time_request(session, options, ratio, 1)
            timings.checks.setdefault(ratio, []).append((one.wall_ms, one.ttft_ms))
            on_request("checking", ratio)
    return timings


def time_request(
    session: Session, options: ProfileOptions, ratio: float, answer_tokens: int
) -> TimedAnswer:
    """One request, timed inside and around."""
    recorder, pictures = Recorder(clock=clock_of(session.chain.backend)), options.pictures
    start = time.perf_counter()
    generation = session.generate(
        options.prompt,
        pictures,
        ratio,
        max_new_tokens=answer_tokens,
        recorder=recorder,
        ignore_stop=True,
    )
    wall_ms = (time.perf_counter() - start) * 1e3
    if len(generation.token_ids) != answer_tokens:
        raise LvlmError(
            f"asked for {answer_tokens} tokens and got {len(generation.token_ids)};"
            " the measurement would not be what it says"
        )
    return TimedAnswer(generation, tuple(recorder.in_order()), wall_ms)


def _warm_up(
    session: Session, options: ProfileOptions, timings: Measurement, on_request: OnRequest
) -> None:
    limit = WARMUP_LIMIT if options.warmup is None else options.warmup
    times: dict[float, list[float]] = {ratio: [] for ratio in options.ratios}
    timings.stable = options.warmup is not None
    for number in range(limit):
        for ratio in rotated(options.ratios, number):
            sample = time_request(session, options, ratio, options.answer_tokens)
            timings.first.setdefault(ratio, sample)
            times[ratio].append(sample.ttft_ms)
            on_request("warming up", ratio)
        timings.warmup_rounds = number + 1
        if options.warmup is None and all(map(settled, times.values())):
            timings.stable = True
            return


def settled(times_ms: Sequence[float]) -> bool:
    """The last three times lie within 5 % of their median."""
    last = times_ms[-WINDOW:]
    return len(last) == WINDOW and max(last) - min(last) <= SETTLED * median(last)


def rotated(ratios: Sequence[float], number: int) -> tuple[float, ...]:
    """The budgets in the order of a round: each round begins one further."""
    first = number % len(ratios)
    return (*ratios[first:], *ratios[:first])


def _rounds(options: ProfileOptions) -> Iterator[int]:
    if options.duration_s is None:
        yield from range(ITERATIONS if options.iterations is None else options.iterations)
        return
    end, number = time.perf_counter() + options.duration_s, 0
    while number < LEAST_ROUNDS or time.perf_counter() < end:
        yield number
        number += 1


def warmup_rule(options: ProfileOptions) -> str:
    """For the report."""
    if options.warmup is not None:
        return f"{options.warmup} rounds, as asked"
    return (
        f"until each budget's last {WINDOW} times to first token lie within {SETTLED:.0%} of their"
        f" median, at most {WARMUP_LIMIT} rounds"
    )
