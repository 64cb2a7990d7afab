"""A Jetson's own ``tegrastats``: the other source of its power rails.

A line holds ``VDD_IN 4970mW/4968mW`` (now, average) or ``VDD_IN 4970mW`` per rail, ``cpu@45.5C``
per sensor and ``RAM 2543/7620MB``. Source: Jetson Linux Developer Guide, tegrastats Utility.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles.devices.nvml import Gpu
from lvlm_profiles.energy import PowerMeter
from lvlm_profiles.energy.ina3221 import module_rails
from lvlm_profiles.missing import Missing
from lvlm_profiles.processes import find_program

INTERVAL_MS = 100
TIMEOUT_S = 5
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW(?:/\d+mW)?")
_SENSOR = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")


@dataclass(frozen=True)
class TegrastatsLine:
    """What a line says.

    Attributes:
        watts: Rail -> power.
        temperatures_c: Sensor -> degrees Celsius; sensors that are off are left out.
        ram_bytes: In use, of the memory that CPU and GPU share; None where it is not said.
    """

    watts: dict[str, float]
    temperatures_c: dict[str, float]
    ram_bytes: int | None


def parse(line: str) -> TegrastatsLine:
    """Read a line; what is not there stays empty."""
    ram = _RAM.search(line)
    sensors = {name: float(value) for name, value in _SENSOR.findall(line)}
    return TegrastatsLine(
        watts={name: int(value) / 1e3 for name, value in _RAIL.findall(line)},
        # A sensor of a part that is powered down reads -256.
        temperatures_c={name: value for name, value in sensors.items() if value > -200},
        ram_bytes=None if ram is None else int(ram[1]) * 1_000_000,
    )


class RunningTegrastats:
    """A running ``tegrastats``, the last line of which is the reading.

    Args:
        command: The program and its arguments.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._last = TegrastatsLine({}, {}, None)

    def read(self) -> TegrastatsLine:
        """Wait for the next line."""
        stdout = self._process.stdout
        line = "" if stdout is None else stdout.readline()
        if line:
            self._last = parse(line)
        return self._last

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait(TIMEOUT_S)


def open_meter(root: Path, gpu: Gpu | Missing) -> PowerMeter | Missing:
    """A meter that reads lines as they come, ten a second."""
    program = find_program("tegrastats")
    if program is None:
        return Missing("tegrastats is not installed")
    stream = RunningTegrastats([program, "--interval", str(INTERVAL_MS)])
    first = stream.read()
    chosen = module_rails(tuple(first.watts))
    if chosen is None:
        stream.close()
        return Missing(
            f"tegrastats shows no known power rails ({', '.join(first.watts) or 'none'})"
        )

    def watts() -> float:
        line = stream.read()
        return sum(line.watts[name] for name in chosen)

    def temperature() -> float | None:
        return max(stream.read().temperatures_c.values(), default=None)

    return PowerMeter(
        f"tegrastats {' + '.join(chosen)}",
        "the whole module: CPU, GPU and memory",
        watts,
        temperature,
        # Reading waits for the next line itself.
        interval_s=0.0,
    )
