"""What makes latency figures less sure: clocks that vary, heat, other programs, scattered samples.

Each check returns a ``Caution`` or nothing. They read a file system's root and can be tried on a
copied tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.report import Caution
from lvlm_profiles.statistics import Summary

# Coefficient of variation above which a median is doubtful.
SCATTER = 0.05
# Share of the processors that others may use before it is worth a line.
LOAD_SHARE = 0.1
# Reported time to first token against a stopwatch around the same calls.
WALL_TOLERANCE = 0.02
# GPU clock, of its highest, below which a desktop card counts as idle when the run begins.
IDLE_CLOCK_SHARE = 0.5
FIXED = ("performance", "userspace")


def unlocked_clocks(root: Path = machine.ROOT) -> list[Caution]:
    """CPU or GPU clocks that the system changes while the program runs."""
    found = machine.clocks(root)
    moving = [f"{name}: {how}" for name, how in found.items() if not _fixed(how)]
    if not moving:
        return []
    is_board = machine.board(root) is not None
    cure = "sudo jetson_clocks" if is_board else "sudo cpupower frequency-set -g performance"
    return [
        Caution(
            "unlocked_clocks",
            f"clocks vary with load ({'; '.join(moving)}); lock them with `{cure}`",
        )
    ]


def _fixed(how: str) -> bool:
    """Locked by its governor, or by limits that leave no room."""
    limits = re.search(r", (\d+) to (\d+) MHz", how)
    return how.split(",")[0] in FIXED or (limits is not None and limits[1] == limits[2])


def unknown_clocks(root: Path = machine.ROOT) -> list[Caution]:
    """Nothing is known of the clocks, as in a virtual machine."""
    if machine.clocks(root):
        return []
    return [
        Caution(
            "unknown_clocks",
            "the system shows no clock governor (a virtual machine or container?): clocks may have"
            " varied unseen",
        )
    ]


def other_load(load_before: float, cores: int) -> list[Caution]:
    """Other programs were busy when the run began.

    Args:
        load_before: One-minute load average before the bundle was loaded.
        cores: Logical CPUs.
    """
    if load_before <= LOAD_SHARE * cores:
        return []
    return [
        Caution(
            "other_load",
            f"load average was {load_before:.2f} on {cores} cores before the run: other programs"
            " took part of the machine",
        )
    ]


def throttle_count(root: Path = machine.ROOT) -> int | None:
    """How often the CPUs were slowed for heat since boot; None where it is not counted.

    ``thermal_throttle`` of x86, and the state of cooling devices elsewhere.
    """
    cpus = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    counts = [machine.number(cpu / f"{kind}_throttle_count") for cpu in cpus for kind in KINDS]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


KINDS = ("core", "package")


def throttled_devices(root: Path = machine.ROOT) -> list[str]:
    """Cooling devices that slow a processor at this moment."""
    found = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind, state = machine.text(device / "type") or "", machine.number(device / "cur_state")
        if state and re.search(r"cpufreq|devfreq|[Pp]rocessor|throttle|cpu|gpu", kind):
            found.append(f"{kind} at {state}")
    return found


def thermal(before: int | None, after: int | None, active: list[str]) -> list[Caution]:
    """Heat slowed the processors during the run.

    Args:
        before: ``throttle_count`` before it.
        after: ``throttle_count`` after it.
        active: ``throttled_devices`` right after it.
    """
    events = 0 if before is None or after is None else after - before
    if events <= 0 and not active:
        return []
    events_seen = [f"{events} throttle events"] if events > 0 else []
    return [
        Caution(
            "thermal_throttling",
            f"heat slowed the processor during the run ({', '.join(events_seen + active)}); cool it down"
            " and measure again",
        )
    ]


def scattered(summaries: Mapping[str, Summary]) -> list[Caution]:
    """Metrics whose coefficient of variation is above 5 %, by label."""
    wide = [f"{label} {each.variation:.0%}" for label, each in summaries.items() if _wide(each)]
    if not wide:
        return []
    return [
        Caution(
            "scattered_samples",
            f"samples scatter by more than {SCATTER:.0%} (coefficient of variation:"
            f" {', '.join(wide)}); read medians with their range, and compare with care",
        )
    ]


def _wide(summary: Summary) -> bool:
    return summary.n > 1 and summary.variation > SCATTER


def unsettled(stable: bool, rounds: int) -> list[Caution]:
    """The warm-up ended at its limit, not because times had settled."""
    if stable:
        return []
    message = f"times had not settled after {rounds} warm-up rounds; give more with --warmup"
    return [Caution("unsettled_warmup", message)]


def wall_difference(differences: Mapping[str, float]) -> list[Caution]:
    """Reported times that a stopwatch around the same calls does not confirm."""
    off = [f"{k} {v:+.1%}" for k, v in differences.items() if abs(v) > WALL_TOLERANCE]
    if not off:
        return []
    return [
        Caution(
            "wall_difference",
            f"a stopwatch around the calls differs from the reported time to first token by more"
            f" than {WALL_TOLERANCE:.0%}: {', '.join(off)}",
        )
    ]


def idle_desktop(clock_mhz: float | None, highest_mhz: float | None) -> list[Caution]:
    """A desktop GPU that was still in its idle state when the measured rounds began.

    Args:
        clock_mhz: Its clock right after the warm-up; None where there is no such GPU.
        highest_mhz: Its highest; None likewise.
    """
    if not clock_mhz or not highest_mhz or clock_mhz >= IDLE_CLOCK_SHARE * highest_mhz:
        return []
    return [
        Caution(
            "idle_state",
            f"the GPU ran at {clock_mhz:.0f} of {highest_mhz:.0f} MHz after the warm-up, its idle"
            " state; lock its clocks with `nvidia-smi -lgc`, or warm up longer with --warmup",
        )
    ]
