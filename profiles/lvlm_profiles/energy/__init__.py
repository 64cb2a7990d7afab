"""Energy meters: what a machine can say of the power it draws, or why it cannot.

A meter is one file here with ``open_meter(root, gpu) -> Meter | Missing`` and one line in ``METERS``;
``find_meter`` takes the first that answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.devices.poller import Poller
from lvlm_profiles.missing import Missing
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


@dataclass(eq=False)
class BaseMeter:
    """What a meter of a counter and a meter of a power have in common.

    Attributes:
        source: What is read.
        scope: What the reading covers.
        read: Reads it.
        temperature_c: Reads degrees Celsius.
        joules: Counted in the last block.
        seconds: Length of the last block.
    """

    source: str
    scope: str
    read: Callable[[], float]
    temperature_c: Callable[[], float | None] = machine.temperature_c
    joules: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)


class CounterMeter(BaseMeter):
    """Hardware that counts energy itself: ``read`` gives the joules so far, always more."""

    def __enter__(self) -> CounterMeter:
        self._start, self._began = time.perf_counter(), self.read()
        return self

    def __exit__(self, *error: object) -> None:
        self.joules = self.read() - self._began
        self.seconds = time.perf_counter() - self._start


@dataclass(eq=False)
class PowerMeter(BaseMeter):
    """A power that a thread integrates by the trapezoidal rule: ``read`` gives the watts now.

    Attributes:
        interval_s: Between two readings.
        now: A clock in seconds.
    """

    interval_s: float = INTERVAL_S
    now: Callable[[], float] = time.perf_counter

    def __enter__(self) -> PowerMeter:
        self._readings: list[tuple[float, float]] = []
        self._read_again()
        self._poller = Poller(self._read_again, self.interval_s)
        self._poller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._poller.stop()
        self._read_again()
        self.joules = integrate(self._readings)
        self.seconds = self._readings[-1][0] - self._readings[0][0]

    def _read_again(self) -> None:
        self._readings.append((self.now(), self.read()))


def integrate(readings: list[tuple[float, float]]) -> float:
    """Joules of (seconds, watts) readings, by the trapezoidal rule."""
    return sum((t2 - t1) * (w1 + w2) / 2 for (t1, w1), (t2, w2) in pairwise(readings))


def find_meter(execution: str, gpu: Gpu | Missing, root: Path = machine.ROOT) -> Meter | Missing:
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
        if not isinstance(found, Missing):
            return cast("Meter", found)
        reasons.append(found.reason)
    return Missing("; ".join(reasons))
