"""Memory at its highest while something runs: the process, a GPU, or a Jetson's shared memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.devices.poller import Poller
from lvlm_profiles.missing import Missing

# Seconds between two readings of a source that keeps no peak of its own.
INTERVAL_S = 0.01


class MemoryProbe(Protocol):
    """A source of memory readings.

    Attributes:
        kind: ``resident``, ``device`` or ``unified``.
    """

    kind: str

    def used_bytes(self) -> int:
        """In use now."""
        ...

    def __enter__(self) -> MemoryProbe:
        """Begin to look for the peak."""
        ...

    def __exit__(self, *error: object) -> None:
        """End it."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The highest since ``with`` began."""
        ...


class ResidentProbe:
    """Resident memory of this process; the kernel itself keeps the peak.

    ``5`` written to ``clear_refs`` resets ``VmHWM``. Source: proc(5).
    """

    kind = "resident"

    def __init__(self, root: Path = machine.ROOT) -> None:
        self._status = root / "proc/self/status"
        self._reset = root / "proc/self/clear_refs"

    def used_bytes(self) -> int:
        """``VmRSS``."""
        return self._entry("VmRSS")

    def __enter__(self) -> ResidentProbe:
        self._reset.write_text("5", encoding="ascii")
        return self

    def __exit__(self, *error: object) -> None:
        self._peak = self._entry("VmHWM")

    @property
    def peak_bytes(self) -> int:
        """``VmHWM`` at the end of the block."""
        return self._peak

    def _entry(self, name: str) -> int:
        for line in (machine.text(self._status) or "").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._status} has no {name}")


class PolledProbe:
    """A source that is read again and again by a thread.

    Args:
        kind: ``device`` or ``unified``.
        used_bytes: Reads it.
    """

    def __init__(self, kind: str, used_bytes: Callable[[], int]) -> None:
        self.kind = kind
        self._read = used_bytes
        self._highest = 0

    def used_bytes(self) -> int:
        """In use now."""
        return self._read()

    def __enter__(self) -> PolledProbe:
        self._highest = self.used_bytes()
        self._poller = Poller(self._read_again, INTERVAL_S)
        self._poller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._poller.stop()
        self._read_again()

    @property
    def peak_bytes(self) -> int:
        """The highest reading."""
        return self._highest

    def _read_again(self) -> None:
        self._highest = max(self._highest, self.used_bytes())


def unified_bytes(root: Path = machine.ROOT) -> int:
    """What CPU and GPU together hold of a Jetson's memory: all but what is available."""
    info = machine.memory_info(root)
    return info["MemTotal"] - info["MemAvailable"]


def open_probe(
    execution: str, gpu: Gpu | Missing, root: Path = machine.ROOT
) -> MemoryProbe | Missing:
    """The probe that fits, or why there is none.

    Args:
        execution: ``cpu`` or ``cuda``, where the graphs run.
        gpu: The GPU, or why NVML knows none.
        root: Of the file system.
    """
    if execution == "cpu":
        if not (root / "proc/self/clear_refs").exists():
            return Missing(
                "this system keeps no resettable peak of a process (no /proc/self/clear_refs)"
            )
        return ResidentProbe(root)
    if machine.board(root) is not None:
        return PolledProbe("unified", lambda: unified_bytes(root))
    if isinstance(gpu, Missing):
        return Missing(f"no NVML to read device memory with ({gpu.reason})")
    return PolledProbe("device", gpu.used_bytes)
