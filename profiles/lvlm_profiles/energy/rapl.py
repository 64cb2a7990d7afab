"""Energy of an x86 processor: the RAPL counters under ``/sys/class/powercap``.

``intel-rapl:<n>`` is a package (AMD's appear under the same name), ``intel-rapl:<n>:<m>`` a part of
it, named in ``name``; ``energy_uj`` counts microjoules and begins again at
``max_energy_range_uj``. Source: the kernel's Documentation/power/powercap.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.energy import CounterMeter
from lvlm_profiles.missing import Missing

UNREADABLE = (
    "the RAPL counters are readable by root alone (sudo chmod a+r"
    " /sys/class/powercap/intel-rapl:*/energy_uj)"
)


def zones(root: Path = machine.ROOT) -> list[Path]:
    """Packages, and memory beside them; parts that a package already counts are left out."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = machine.text(zone / "name") or ""
        if name.startswith("package") or name == "dram":
            found.append(zone)
    return found


class Counters:
    """Several counters as one that never begins again.

    Args:
        zones: Their directories.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [machine.number(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._last = self._readings()
        self._total = 0

    def joules(self) -> float:
        """Since the beginning; to be asked at least once per range of a counter."""
        now = self._readings()
        for before, after, whole in zip(self._last, now, self._ranges, strict=True):
            self._total += after - before + (whole if after < before else 0)
        self._last = now
        return self._total / 1e6

    def _readings(self) -> list[int]:
        readings = [machine.number(zone / "energy_uj") for zone in self._zones]
        if None in readings:
            raise OSError(UNREADABLE)
        return [reading for reading in readings if reading is not None]


def open_meter(root: Path, gpu: Gpu | Missing) -> CounterMeter | Missing:
    """A meter of all packages and their memory."""
    found = zones(root)
    if not found:
        return Missing(
            "no RAPL counters under /sys/class/powercap (a virtual machine or container?)"
        )
    try:
        counters = Counters(found)
    except OSError as error:
        return Missing(str(error))
    names = sorted(machine.text(zone / "name") or "" for zone in found)
    scope = "the processor" + (" and its memory" if "dram" in names else "")
    return CounterMeter(
        f"RAPL {' + '.join(names)}",
        scope,
        counters.joules,
        lambda: machine.temperature_c(root),
    )
