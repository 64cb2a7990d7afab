"""Statistics with known answers."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from lvlm_profiles.statistics import median_change, percentile, summarize


def test_a_summary_of_known_numbers() -> None:
    summary = summarize([4.0, 1.0, 3.0, 2.0])
    assert (summary.n, summary.mean, summary.median, summary.p50) == (4, 2.5, 2.5, 2.5)
    assert (summary.minimum, summary.maximum) == (1.0, 4.0)
    assert summary.p90 == pytest.approx(3.7)
    assert summary.p95 == pytest.approx(3.85)
    assert summary.p99 is None
    assert summary.deviation == pytest.approx(math.sqrt(5 / 3))
    assert summary.variation == pytest.approx(math.sqrt(5 / 3) / 2.5)


def test_a_hundred_samples_have_a_99th_percentile() -> None:
    assert summarize([float(number) for number in range(99)]).p99 is None
    assert summarize([float(number) for number in range(101)]).p99 == pytest.approx(99.0)


def test_one_sample_has_no_spread() -> None:
    summary = summarize([7.0])
    assert (summary.deviation, summary.variation, summary.p95) == (0.0, 0.0, 7.0)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


@pytest.mark.parametrize("percent", [0, 10, 25, 50, 90, 99, 100])
def test_percentiles_are_those_of_numpy(percent: float) -> None:
    samples = sorted(np.random.default_rng(3).lognormal(size=37).tolist())
    assert percentile(samples, percent) == pytest.approx(float(np.percentile(samples, percent)))


def test_an_interval_covers_no_change_of_equal_sets_and_a_true_change_of_others() -> None:
    draw = np.random.default_rng(1)
    before = draw.normal(100, 3, 30).tolist()
    same = median_change(before, draw.normal(100, 3, 30).tolist())
    assert same.low <= 0 <= same.high
    slower = median_change(before, draw.normal(120, 3, 30).tolist())
    assert 0.1 < slower.low <= slower.change <= slower.high < 0.3
    assert slower.change == pytest.approx(0.2, abs=0.03)


def test_the_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        sets = [draw.normal(50, 4, 25).tolist() for _ in range(2)]
        summary = median_change(*sets, resamples=200)
        covered += summary.low <= 0 <= summary.high
    assert covered >= 88


def test_a_comparison_repeats_itself() -> None:
    before, after = [1.0, 1.1, 0.9, 1.2, 1.0], [1.3, 1.2, 1.4, 1.1, 1.3]
    assert median_change(before, after) == median_change(before, after)
    assert median_change(before, after).change == pytest.approx(
        statistics.median(after) / statistics.median(before) - 1
    )


def test_from_nothing_to_something_is_infinite() -> None:
    assert median_change([0.0] * 5, [1.0] * 5).change == math.inf
    assert median_change([0.0] * 5, [0.0] * 5).change == 0.0
