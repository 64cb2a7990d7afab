"""Energy meters: what a machine can say of the power it draws, or why it cannot.

A meter is one file here with ``open_meter(root, gpu) -> Meter | str`` (a string is the reason why
there is none) and one line in ``METERS``; ``find_meter`` takes the first that answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.registry import resolve

# For graphs on the GPU and on the CPU; on a Jetson both share the rails.
METERS: dict[str, str] = {
    "ina3221": "lvlm_profiles.energy.ina3221:open_meter",
    "tegrastats": "lvlm_profiles.energy.tegrastats:open_meter",
    "nvml": "lvlm_profiles.energy.nvml:open_meter",
    "rapl": "lvlm_profiles.energy.rapl:open_meter",
}
BOARD, GPU, CPU = ("ina3221", "tegrastats"), ("nvml",), ("rapl",)
# Seconds between two readings of a power that is not counted by the hardware.
INTERVAL_S = 0.02


class Meter(Protocol):
    """Counts energy inside a ``with`` block.

    Attributes:
        source: What is read.
        scope: What the reading covers.
    """

    source: str
    scope: str

    def __enter__(self) -> Meter:
        """Begin to count."""
        ...

    def __exit__(self, *error: object) -> None:
        """End it."""
        ...

    @property
    def joules(self) -> float:
        """Counted in the block."""
        ...

    @property
    def seconds(self) -> float:
        """Length of the block."""
        ...

    def temperature_c(self) -> float | None:
        """Of the hottest sensor; None where there is none."""
        ...


class CounterMeter:
    """Hardware that counts energy itself.

    Args:
        source: What is read.
        scope: What it covers.
        read: Joules so far, always more.
        temperature: Reads degrees Celsius.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        read: Callable[[], float],
        temperature: Callable[[], float | None] = machine.temperature_c,
    ) -> None:
        self.source, self.scope = source, scope
        self._read = read
        self.temperature_c = temperature
        self.joules = self.seconds = 0.0

    def __enter__(self) -> CounterMeter:
        self._start, self._began = time.perf_counter(), self._read()
        return self

    def __exit__(self, *error: object) -> None:
        self.joules = self._read() - self._began
        self.seconds = time.perf_counter() - self._start


class PowerMeter:
    """A power reading that a thread integrates by the trapezoidal rule.

    Args:
        source: What is read.
        scope: What it covers.
        read: Watts now.
        temperature: Reads degrees Celsius.
        interval_s: Between two readings.
        now: A clock in seconds.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        read: Callable[[], float],
        temperature: Callable[[], float | None] = machine.temperature_c,
        interval_s: float = INTERVAL_S,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.source, self.scope = source, scope
        self._read, self._now, self._interval_s = read, now, interval_s
        self.temperature_c = temperature
        self.joules = self.seconds = 0.0

    def __enter__(self) -> PowerMeter:
        self._readings = [(self._now(), self._read())]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._readings.append((self._now(), self._read()))
        self.joules = integrate(self._readings)
        self.seconds = self._readings[-1][0] - self._readings[0][0]

    def _poll(self) -> None:
        while not self._done.wait(self._interval_s):
            self._readings.append((self._now(), self._read()))


def integrate(readings: list[tuple[float, float]]) -> float:
    """Joules of (seconds, watts) readings, by the trapezoidal rule."""
    return sum((t2 - t1) * (w1 + w2) / 2 for (t1, w1), (t2, w2) in pairwise(readings))


def find_meter(execution: str, gpu: Gpu | str, root: Path = machine.ROOT) -> Meter | str:
    """The meter for where the graphs run, or why there is none.

    Args:
        execution: ``cpu`` or ``cuda``.
        gpu: The GPU, or why NVML knows none.
        root: Of the file system.
    """
    on_chip = CPU if execution == "cpu" else GPU
    names = on_chip if machine.board(root) is None else BOARD
    reasons = []
    for name in names:
        found = resolve(METERS, name, "energy meter")(root, gpu)
        if not isinstance(found, str):
            return cast("Meter", found)
        reasons.append(found)
    return "; ".join(reasons)
