"""A desktop GPU through NVIDIA's management library, where the optional ``nvidia-ml-py`` is there."""

from __future__ import annotations

import importlib
from typing import Any

from lvlm_profiles.errors import LvlmError
from lvlm_profiles.missing import Missing

# Bits of NVML's clock event reasons that mean heat. Source: NVML API reference, nvmlClocksEventReasons.
THERMAL_BITS = 0x20 | 0x40
PACKAGE = "nvidia-ml-py"


class NoGpuError(LvlmError):
    """There is no GPU to ask; the message is the reason in a few words."""


class Gpu:
    """One GPU.

    Args:
        library: The ``pynvml`` module, initialised.
        handle: Of the GPU.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @property
    def name(self) -> str:
        """As the driver writes it."""
        return _text(self._library.nvmlDeviceGetName(self._handle))

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return _text(self._library.nvmlSystemGetDriverVersion())

    def energy_joules(self) -> float:
        """Counted since the driver was loaded; NoGpuError before Volta, which does not count."""
        return float(self._ask("nvmlDeviceGetTotalEnergyConsumption")) / 1e3

    def watts(self) -> float:
        """Power now, averaged over a second by GPUs since Ampere."""
        return float(self._ask("nvmlDeviceGetPowerUsage")) / 1e3

    def temperature_c(self) -> float:
        """Of the chip."""
        return float(self._ask("nvmlDeviceGetTemperature", self._library.NVML_TEMPERATURE_GPU))

    def clocks_mhz(self) -> tuple[float, float]:
        """Clock of the shader processors, now and at most."""
        kind = self._library.NVML_CLOCK_SM
        now = self._ask("nvmlDeviceGetClockInfo", kind)
        return float(now), float(self._ask("nvmlDeviceGetMaxClockInfo", kind))

    def too_hot(self) -> bool:
        """Heat slows it at this moment."""
        return bool(int(self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")) & THERMAL_BITS)

    def used_bytes(self) -> int:
        """Device memory in use, other programs' included.

        NVML can tell processes apart, but not from inside a container, where it sees none.
        """
        return int(self._ask("nvmlDeviceGetMemoryInfo").used)

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, function)(self._handle, *arguments)
        except self._library.NVMLError as error:
            raise NoGpuError(f"{function}: {error}") from None


def open_gpu(index: int = 0, library: Any = None) -> Gpu:
    """A GPU by its number.

    Args:
        index: As ``nvidia-smi`` counts.
        library: In place of ``pynvml``.

    Raises:
        NoGpuError: The package, the driver or the GPU is missing.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            raise NoGpuError(f"{PACKAGE} is not installed") from None
    try:
        library.nvmlInit()
        return Gpu(library, library.nvmlDeviceGetHandleByIndex(index))
    except library.NVMLError as error:
        raise NoGpuError(f"NVML does not answer: {error}") from None


def find_gpu(execution: str) -> Gpu | Missing:
    """The GPU of a run, or why there is none to ask.

    Args:
        execution: ``cpu`` or ``cuda``, where the graphs run.
    """
    if execution == "cpu":
        return Missing("the graphs ran on the CPU")
    try:
        return open_gpu()
    except NoGpuError as error:
        return Missing(str(error))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
