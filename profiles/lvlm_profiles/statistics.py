"""Statistics of latency samples and of answers, and whether two sets of them differ. Pure functions."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Resamples of a bootstrap, and the seed that makes a comparison repeat itself.
RESAMPLES, SEED = 2000, 20240819
CONFIDENCE = 0.95
# Fewer samples have no 99th percentile, but a largest.
LEAST_FOR_P99 = 100


@dataclass(frozen=True)
class Summary:
    """Statistics of a set of samples, in the samples' own unit.

    Attributes:
        n: Samples.
        mean: Their mean.
        median: Their median, as ``p50``.
        p50: Percentiles interpolate linearly between the two nearest samples.
        p90: As p50.
        p95: As p50.
        p99: As p50; None of fewer than 100 samples, of which it would be the largest but one or two.
        minimum: The least.
        maximum: The largest.
        deviation: Standard deviation of the sample (n - 1); 0 for one sample.
        variation: Coefficient of variation, deviation over mean; 0 where the mean is 0.
    """

    n: int
    mean: float
    median: float
    p50: float
    p90: float
    p95: float
    p99: float | None
    minimum: float
    maximum: float
    deviation: float
    variation: float


@dataclass(frozen=True)
class Interval:
    """The change of a median from one set of samples to another, relative to the first.

    Attributes:
        change: ``median(b) / median(a) - 1``.
        low: Lower end of its interval.
        high: Upper end.
    """

    change: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedChange:
    """From one set of answers to another, over the same questions.

    Attributes:
        questions: How many.
        lost: Right before and wrong after.
        won: Wrong before and right after.
        change: Accuracy after minus before.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of McNemar's exact test, two-sided: how often chance alone parts so far or further.
    """

    questions: int
    lost: int
    won: int
    change: float
    low: float
    high: float
    p: float

    @property
    def standard_error(self) -> float:
        """Of ``change``, with the variance of paired differences."""
        apart = self.lost + self.won - (self.won - self.lost) ** 2 / self.questions
        return math.sqrt(apart) / self.questions


def summarize(samples: Sequence[float]) -> Summary:
    """Statistics of at least one sample."""
    if not samples:
        raise ValueError("no samples to summarize")
    ordered = sorted(samples)
    mean = statistics.fmean(ordered)
    deviation = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    middle = percentile(ordered, 50)
    return Summary(
        n=len(ordered),
        mean=mean,
        median=middle,
        p50=middle,
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99) if len(ordered) >= LEAST_FOR_P99 else None,
        minimum=ordered[0],
        maximum=ordered[-1],
        deviation=deviation,
        variation=deviation / mean if mean else 0.0,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """A percentile of samples in ascending order, by linear interpolation (numpy's default)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median_change(
    before: Sequence[float],
    after: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Relative change of the median with its 95 % bootstrap interval.

    The percentile bootstrap: both sets are drawn again with replacement, the two medians are
    compared, and the middle 95 % of the results is the interval. The seed is fixed, so the same
    two reports always give the same interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    draw = random.Random(seed)
    changes = sorted(
        _ratio(
            statistics.median(draw.choices(after, k=len(after))),
            statistics.median(draw.choices(before, k=len(before))),
        )
        for _ in range(resamples)
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    return Interval(
        _ratio(statistics.median(after), statistics.median(before)),
        percentile(changes, tail),
        percentile(changes, 100 - tail),
    )


def _ratio(after: float, before: float) -> float:
    """Relative change; from nothing to something is infinite."""
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return after / before - 1


def paired_change(before: Sequence[bool], after: Sequence[bool]) -> PairedChange:
    """Compare answers to the same questions, at least one, in the same order.

    Example:
        >>> change = paired_change([True] * 9 + [False] * 11, [False] * 9 + [True] + [False] * 10)
        >>> change.lost, change.won, round(change.p, 4)
        (9, 1, 0.0215)
    """
    pairs = list(zip(before, after, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    low, high = paired_interval(lost, won, len(pairs))
    change = (won - lost) / len(pairs)
    return PairedChange(len(pairs), lost, won, change, low, high, mcnemar_exact(lost, won))


def mcnemar_exact(lost: int, won: int) -> float:
    """Two-sided p of so many changes one way and the other, where both ways are as probable.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution itself.
    """
    changed, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**changed))


def paired_interval(lost: int, won: int, questions: int) -> tuple[float, float]:
    """95 % interval of the difference of two accuracies on the same questions.

    One more change of each kind is counted, so that the interval holds for few changes too.
    Source: D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 37 (2012), 479-488.
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    down, up = (lost + 1) / (questions + 2), (won + 1) / (questions + 2)
    half = z * math.sqrt((down + up - (up - down) ** 2) / (questions + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)
