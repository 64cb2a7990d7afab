"""Where latency over the token count bends, and where it jumps. Pure functions.

Matrix kernels work in tiles, so latency over tokens is a staircase on real devices: a few tokens
more may cost nothing, or a whole tile. Below the knee the hardware is not full, and fewer tokens
save little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

# The bent line must leave at most this share of the straight line's squared error, and the slope
# must grow at least so much, to be believed.
BETTER, STEEPER = 0.5, 1.5
# A jump is a rise of one step above this multiple of the median rise, and above this share of the
# latency.
JUMP, JUMP_SHARE = 3.0, 0.05
# Fewest points for either.
LEAST_POINTS = 6


def envelope(latency_ms: Sequence[float]) -> list[float]:
    """The least time in which at least so many tokens pass.

    A count that is slower than a larger one was delayed, or does not fit the kernels' tiles; who
    needs that many tokens may fill up to the larger one.
    """
    return list(accumulate(reversed(latency_ms), min))[::-1]


def knee(tokens: Sequence[int], latency_ms: Sequence[float], noise_ms: float = 0.0) -> int | None:
    """Token count above which each token costs more than below; None for a straight line.

    Two straight lines that meet at one of the measured counts are fitted by least squares, for
    every such count; the best is the knee if it halves the squared error of one line, the second
    line is at least 1.5 times as steep as the first, and it ends above the first by more than
    noise.

    Args:
        tokens: Counts in ascending order.
        latency_ms: Latency at each, never falling.
        noise_ms: By how much calls of one count differ.
    """
    if len(tokens) < LEAST_POINTS:
        return None
    _, straight = _fit(tokens, latency_ms, None)
    best: tuple[float, int, float, float] | None = None
    for place in tokens[2:-2]:
        (below, above), error = _fit(tokens, latency_ms, place)
        if best is None or error < best[0]:
            best = (error, place, below, above)
    if best is None:
        return None
    error, place, below, above = best
    steeper = above > STEEPER * max(below, 0.0) and above > 0
    extra = (above - below) * (tokens[-1] - place)
    # A straight line fits itself but for rounding.
    rounding = 1e-9 * sum(value * value for value in latency_ms)
    clear = extra > noise_ms and error <= BETTER * straight and straight > rounding
    return place if steeper and clear else None


def steps(
    tokens: Sequence[int], latency_ms: Sequence[float], noise_ms: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Token counts at which latency jumps.

    A jump is a rise, from one count to the next, above three times the median rise per token,
    above 5 % of the latency before it, and above the noise of both counts.

    Args:
        tokens: Counts in ascending order.
        latency_ms: Latency at each, never falling.
        noise_ms: By how much calls of each count differ; None for not at all.
    """
    if len(tokens) < LEAST_POINTS:
        return ()
    noise = noise_ms or (0.0,) * len(tokens)
    rises = [
        (count, after - before, count - earlier, before, max(noisy))
        for ((earlier, before), (count, after)), noisy in zip(
            pairwise(zip(tokens, latency_ms, strict=True)), pairwise(noise), strict=True
        )
    ]
    slopes = sorted(rise / width for _, rise, width, *_ in rises)
    usual = max(slopes[len(slopes) // 2], 0.0)
    return tuple(
        count
        for count, rise, width, before, noisy in rises
        if rise > JUMP * usual * width and rise > JUMP_SHARE * before and rise > noisy
    )


def _fit(
    x: Sequence[int], y: Sequence[float], bend: int | None
) -> tuple[tuple[float, float], float]:
    """Slopes below and above the bend, and the squared error, of a continuous line with one bend.

    ``y = a + b x + c max(0, x - bend)`` by least squares; without a bend, c is 0.
    """
    columns = [[1.0] * len(x), [float(value) for value in x]]
    if bend is not None:
        columns.append([max(0.0, value - bend) for value in x])
    matrix = [
        [math.fsum(a * b for a, b in zip(u, v, strict=True)) for v in columns] for u in columns
    ]
    right = [math.fsum(a * b for a, b in zip(u, y, strict=True)) for u in columns]
    found = _solve(matrix, right)
    fitted = [
        sum(weight * column[i] for weight, column in zip(found, columns, strict=True))
        for i in range(len(x))
    ]
    error = math.fsum((value - line) ** 2 for value, line in zip(y, fitted, strict=True))
    below = found[1]
    return (below, below + (found[2] if bend is not None else 0.0)), error


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivots; two or three unknowns."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][k] * found[k] for k in range(i + 1, size))
        found[i] = (rows[i][size] - known) / rows[i][i]
    return found
