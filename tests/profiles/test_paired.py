"""Paired answers: McNemar's exact test and the interval of a difference, against hand values."""

from __future__ import annotations

import pytest

from lvlm_profiles.statistics import mcnemar_exact, paired_change, paired_interval


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        # 2 (C(10, 0) + C(10, 1)) / 2^10, and the like.
        (9, 1, 22 / 1024),
        (1, 9, 22 / 1024),
        (5, 0, 2 / 32),
        (6, 2, 2 * (1 + 8 + 28) / 256),
        (0, 0, 1.0),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_is_the_binomial_tail(lost: int, won: int, p: float) -> None:
    assert mcnemar_exact(lost, won) == pytest.approx(p, rel=1e-12)


def test_the_interval_by_hand() -> None:
    """Bonett and Price: 4 and 2 changes of 98 become 5 and 3 of 100."""
    half = 1.959964 * ((0.08 - 0.02**2) / 100) ** 0.5
    assert paired_interval(4, 2, 98) == pytest.approx((-0.02 - half, -0.02 + half), abs=1e-6)


def test_the_standard_error_is_that_of_the_differences() -> None:
    """Two lost and one won of eight: differences -1, -1, 1 and five zeros."""
    change = paired_change([True, True, False] + [True] * 5, [False, False, True] + [True] * 5)
    mean = -1 / 8
    variance = (2 * (-1 - mean) ** 2 + (1 - mean) ** 2 + 5 * mean**2) / 8
    assert change.standard_error == pytest.approx((variance / 8) ** 0.5)


def test_many_changes_still_have_a_p() -> None:
    assert 0 < mcnemar_exact(900, 700) < 1e-6


def test_a_change_has_its_sign() -> None:
    change = paired_change([True, True, False, True], [True, False, False, False])
    assert (change.lost, change.won, change.change) == (2, 0, -0.5)
    assert change.low < -0.5 < change.high
