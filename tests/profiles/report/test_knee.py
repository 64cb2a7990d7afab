"""Where a latency curve bends and jumps, on curves whose answer is known."""

from __future__ import annotations

import math
import random

import pytest

from lvlm_profiles.report.knee import envelope, knee, steps

TOKENS = tuple(range(32, 513, 32))


@pytest.mark.parametrize("bend", [128, 224, 352])
def test_a_bend_is_found_where_it_is(bend: int) -> None:
    latency = [1.0 + 0.001 * n + 0.02 * max(0, n - bend) for n in TOKENS]
    assert knee(TOKENS, latency) == bend


def test_a_bend_is_found_in_noise() -> None:
    draw = random.Random(4)
    latency = [(1.0 + 0.03 * max(0, n - 256)) * draw.uniform(0.98, 1.02) for n in TOKENS]
    found = knee(TOKENS, latency)
    assert found is not None
    assert abs(found - 256) <= 32


@pytest.mark.parametrize(
    "curve",
    [
        lambda n: 1.0 + 0.01 * n,
        lambda n: 5.0,
        lambda n: math.sqrt(n),
    ],
    ids=["straight", "flat", "ever flatter"],
)
def test_a_curve_that_does_not_bend_up_has_no_knee(curve: object) -> None:
    assert knee(TOKENS, [curve(n) for n in TOKENS]) is None  # type: ignore[operator]


def test_jumps_are_found_where_they_are() -> None:
    latency = [
        1.0 + 0.0005 * n + (0.5 if n >= 160 else 0) + (0.8 if n >= 416 else 0) for n in TOKENS
    ]
    assert steps(TOKENS, latency) == (160, 416)


def test_a_straight_line_has_no_jumps() -> None:
    assert steps(TOKENS, [0.01 * n for n in TOKENS]) == ()


def test_few_points_say_nothing() -> None:
    assert knee((1, 2, 3), (1.0, 1.0, 9.0)) is None
    assert steps((1, 2, 3), (1.0, 1.0, 9.0)) == ()


def test_what_is_no_more_than_noise_is_neither_knee_nor_jump() -> None:
    bent = [1.0 + 0.02 * max(0, n - 256) for n in TOKENS]
    assert knee(TOKENS, bent, noise_ms=5.0) == 256
    assert knee(TOKENS, bent, noise_ms=5.2) is None
    jumping = [1.0 + (0.5 if n >= 160 else 0) for n in TOKENS]
    noise = [0.4] * len(TOKENS)
    assert steps(TOKENS, jumping, noise) == (160,)
    noise[TOKENS.index(160)] = 0.6
    assert steps(TOKENS, jumping, noise) == ()


def test_the_envelope_forgets_counts_that_a_larger_one_beats() -> None:
    assert envelope([1.0, 2.0, 9.0, 3.0, 3.0, 4.0]) == [1.0, 2.0, 3.0, 3.0, 3.0, 4.0]
    spiky = [0.01 * n + (20.0 if n == 256 else 0) for n in TOKENS]
    assert steps(TOKENS, spiky) == (256,)
    assert steps(TOKENS, envelope(spiky)) == ()
    assert knee(TOKENS, envelope(spiky)) is None
