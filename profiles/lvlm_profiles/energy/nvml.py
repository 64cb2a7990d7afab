"""Energy of a desktop GPU, from the counter that its driver keeps (since Volta)."""

from __future__ import annotations

from pathlib import Path

from lvlm_profiles.devices.nvml import Gpu, NoGpuError
from lvlm_profiles.energy import CounterMeter, PowerMeter
from lvlm_profiles.missing import Missing

SCOPE = "the GPU board; processor and memory of the host are not in it"


def open_meter(root: Path, gpu: Gpu | Missing) -> CounterMeter | PowerMeter | Missing:
    """The energy counter, or the power reading of a GPU that has none."""
    if isinstance(gpu, Missing):
        return gpu
    try:
        gpu.energy_joules()
    except NoGpuError as no_counter:
        try:
            gpu.watts()
        except NoGpuError:
            return Missing(f"the GPU reports neither energy nor power ({no_counter})")
        return PowerMeter("NVML power", SCOPE, gpu.watts, gpu.temperature_c)
    return CounterMeter("NVML energy counter", SCOPE, gpu.energy_joules, gpu.temperature_c)
