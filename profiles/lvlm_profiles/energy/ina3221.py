"""Power rails of a Jetson: the INA3221 sensors of its module, through sysfs.

``in<n>_label`` names a rail, ``in<n>_input`` is its voltage in mV and ``curr<n>_input`` its current
in mA. Sources: the kernel's Documentation/hwmon/ina3221; Jetson Linux Developer Guide, Software-Based
Power Consumption Modeling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.energy import PowerMeter
from lvlm_profiles.missing import Missing

CHANNELS = (1, 2, 3)
# Rails that together are the module, best first: its input where there is one sensor for it
# (Orin Nano, Orin NX, Thor), else the supplies beside one another (AGX Orin). VDDQ_VDD2_1V8AO of
# AGX Orin is left out: VIN_SYS_5V0 feeds it.
MODULE_RAILS = (("VDD_IN",), ("VIN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass(frozen=True)
class Rail:
    """One channel of a sensor."""

    name: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Power now.

        Raises:
            OSError: The sensor does not answer.
        """
        volts, amperes = machine.number(self.millivolts), machine.number(self.milliamperes)
        if volts is None or amperes is None:
            raise OSError(f"the power rail {self.name} cannot be read ({self.millivolts.parent})")
        return volts * amperes / 1e6


def rails(root: Path = machine.ROOT) -> list[Rail]:
    """All rails of all sensors."""
    found = []
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if machine.text(sensor / "name") != "ina3221":
            continue
        for channel in CHANNELS:
            label = machine.text(sensor / f"in{channel}_label")
            if label and label != "NC":
                volts, amperes = sensor / f"in{channel}_input", sensor / f"curr{channel}_input"
                found.append(Rail(label, volts, amperes))
    return found


def module_rails(names: Sequence[str]) -> tuple[str, ...] | None:
    """Which of some rails add up to the module; None where they are of no board known here."""
    return next((rails for rails in MODULE_RAILS if set(rails) <= set(names)), None)


def open_meter(root: Path, gpu: Gpu | Missing) -> PowerMeter | Missing:
    """A meter of the whole module."""
    known = {rail.name: rail for rail in rails(root)}
    if not known:
        return Missing("no INA3221 power sensor under /sys/class/hwmon")
    chosen = module_rails(tuple(known))
    if chosen is None:
        return Missing(f"the INA3221 rails {', '.join(sorted(known))} are of no board known here")

    def watts() -> float:
        return sum(known[name].watts() for name in chosen)

    try:
        watts()
    except OSError as error:
        return Missing(str(error))
    return PowerMeter(
        f"INA3221 {' + '.join(chosen)}",
        "the whole module: CPU, GPU and memory",
        watts,
        lambda: machine.temperature_c(root),
    )
