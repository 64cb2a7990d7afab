"""Clocks for graph calls: the host's, or a backend's own."""

from __future__ import annotations

import time
from typing import Any, Protocol, runtime_checkable


class Clock(Protocol):
    """What times a graph call.

    Attributes:
        name: For reports, as ``CUDA events``.
    """

    name: str

    def start(self) -> Any:
        """Mark the beginning of a call."""
        ...

    def stop(self, mark: Any) -> float:
        """Milliseconds since the mark, once the call's work is done."""
        ...


class HostClock:
    """The host's clock. Right where a call returns after its work is done.

    ONNX Runtime does so on the CPU, and on CUDA through IO binding, which waits for the device.
    """

    name = "host clock, after the device has finished"

    def start(self) -> int:
        """Nanoseconds now."""
        return time.perf_counter_ns()

    def stop(self, mark: int) -> float:
        """Milliseconds since then."""
        return (time.perf_counter_ns() - mark) / 1e6


@runtime_checkable
class TimedBackend(Protocol):
    """A backend that times its own calls, because they return before the device is done."""

    def clock(self) -> Clock:
        """A clock for its graph calls, as one of CUDA events."""
        ...


def clock_of(backend: object) -> Clock:
    """The backend's own clock, or the host's where it has none."""
    return backend.clock() if isinstance(backend, TimedBackend) else HostClock()
