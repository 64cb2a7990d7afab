"""Memory at its highest while something runs: the process, a GPU, or a Jetson's shared memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu

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
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._highest = max(self._highest, self.used_bytes())

    @property
    def peak_bytes(self) -> int:
        """The highest reading."""
        return self._highest

    def _poll(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._highest = max(self._highest, self.used_bytes())


def unified_bytes(root: Path = machine.ROOT) -> int:
    """What CPU and GPU together hold of a Jetson's memory: all but what is available."""
    info = machine.memory_info(root)
    return info["MemTotal"] - info["MemAvailable"]


def open_probe(execution: str, gpu: Gpu | None, root: Path = machine.ROOT) -> MemoryProbe | str:
    """The probe that fits, or the reason why there is none.

    Args:
        execution: ``cpu`` or ``cuda``, where the graphs run.
        gpu: The GPU, where NVML knows one.
        root: Of the file system.
    """
    if execution == "cpu":
        if not (root / "proc/self/clear_refs").exists():
            return "this system keeps no resettable peak of a process (no /proc/self/clear_refs)"
        return ResidentProbe(root)
    if machine.board(root) is not None:
        return PolledProbe("unified", lambda: unified_bytes(root))
    if gpu is None:
        return "no NVML to read device memory with (pip install nvidia-ml-py)"
    return PolledProbe("device", gpu.used_bytes)
