"""What the time to the first token will be, from the last requests and the work that they were."""

from __future__ import annotations

import math
import threading
from collections import deque

# Requests that are remembered per ratio and number of pictures.
REMEMBERED = 32


class MeasuredTimes:
    """Times to the first token of the last requests.

    What is said is the 90th percentile of requests of the same ratio and number of pictures, longer by
    as much as the asked one is more work in floating-point operations; a smaller one counts as long, for
    the part of the time that does not shrink. Where none had as many pictures, those with another number
    count in the same way.

    Example:
        >>> times = MeasuredTimes()
        >>> times.add(0.5, 1, flops=1e9, ms=100.0)
        >>> times.predict(0.5, 1, flops=2e9), times.predict(0.5, 1, flops=5e8), times.predict(1.0, 1, 1e9)
        (200.0, 100.0, None)
    """

    def __init__(self) -> None:
        self._last: dict[tuple[float, int], deque[tuple[float, float]]] = {}
        self._lock = threading.Lock()

    def add(self, ratio: float, images: int, flops: float, ms: float) -> None:
        """A request that was answered from nothing.

        Args:
            ratio: Of its budget.
            images: Its pictures.
            flops: Of everything up to its first token.
            ms: Time that it took.
        """
        with self._lock:
            self._last.setdefault((ratio, images), deque(maxlen=REMEMBERED)).append((flops, ms))

    def predict(self, ratio: float, images: int, flops: float) -> float | None:
        """Milliseconds, or None where no request had this ratio."""
        with self._lock:
            near = [key for key in self._last if key[0] == ratio]
            if not near:
                return None
            key = min(near, key=lambda each: abs(each[1] - images))
            measured = list(self._last[key])
        scaled = sorted(ms * max(1.0, flops / done) for done, ms in measured)
        return scaled[math.ceil(0.9 * len(scaled)) - 1]
