"""What a machine says of itself: processor, memory, board, power mode. Reads ``/proc`` and ``/sys``.

Every reader takes the root of the file system, so that a copied tree reads like the machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

ROOT = Path("/")


def text(path: Path) -> str | None:
    """A small file's text without outer space and NULs; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A small file's integer; None where there is none."""
    content = text(path)
    try:
        return None if content is None else int(content)
    except ValueError:
        return None


def processor(root: Path = ROOT) -> str:
    """The CPU as the kernel names it, else its architecture."""
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def board(root: Path = ROOT) -> str | None:
    """A Jetson's name from its device tree; None elsewhere."""
    compatible = text(root / "proc/device-tree/compatible") or ""
    if "nvidia,tegra" not in compatible:
        return None
    return text(root / "proc/device-tree/model") or "NVIDIA Jetson"


def cores() -> int:
    """Logical CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_info(root: Path = ROOT) -> dict[str, int]:
    """``/proc/meminfo`` in bytes; empty where there is none."""
    found = {}
    for line in (text(root / "proc/meminfo") or "").splitlines():
        match = re.match(r"(\w+):\s+(\d+) kB", line)
        if match:
            found[match[1]] = int(match[2]) * 1024
    return found


def system(root: Path = ROOT) -> str:
    """Distribution and kernel; on a Jetson its Linux release too."""
    names = []
    for line in (text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            names.append(line.partition("=")[2].strip('"'))
    release = text(root / "etc/nv_tegra_release")
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    if match:
        names.append(f"Jetson Linux R{match[1]}.{match[2]}")
    names.append(f"{platform.system()} {platform.release()}")
    return ", ".join(names)


def power_mode(root: Path = ROOT) -> str | None:
    """The mode that ``nvpmodel`` has set, by name; None where there is no nvpmodel.

    ``/var/lib/nvpmodel/status`` holds ``pmode:0002``, and ``/etc/nvpmodel.conf`` the names as
    ``< POWER_MODEL ID=2 NAME=15W >``. Source: Jetson Linux Developer Guide, nvpmodel.
    """
    status = re.match(r"pmode:(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    mode = int(status[1])
    names = re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text(root / "etc/nvpmodel.conf") or ""
    )
    return next((name for each, name in names if int(each) == mode), f"mode {mode}")


def clocks(root: Path = ROOT) -> dict[str, str]:
    """Governors and limits of CPU and GPU clocks, as far as the system shows them."""
    found: dict[str, str] = {}
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        governor = text(policy / "scaling_governor")
        low, high = number(policy / "scaling_min_freq"), number(policy / "scaling_max_freq")
        if governor is not None:
            limits = f", {low // 1000} to {high // 1000} MHz" if low and high else ""
            found[f"cpu {policy.name}"] = f"{governor}{limits}"
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        governor, low = text(device / "governor"), number(device / "min_freq")
        high = number(device / "max_freq")
        if governor is not None and re.search(r"gpu|gv11b|ga10b|gb10b", device.name):
            limits = f", {low // 1_000_000} to {high // 1_000_000} MHz" if low and high else ""
            found["gpu"] = f"{governor}{limits}"
    return found


def temperature_c(root: Path = ROOT) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where there is none."""
    zones = (root / "sys/class/thermal").glob("thermal_zone*")
    found = [value for zone in zones if (value := number(zone / "temp")) is not None]
    # Zones without a reading report values far outside of what silicon survives.
    sane = [value / 1000 for value in found if -40_000 < value < 150_000]
    return max(sane, default=None)


def fingerprint(root: Path = ROOT, accelerator: str | None = None) -> str:
    """Twelve hexadecimal digits that two reports of one machine share.

    Of the machine id, the processor, the core count, the board and the accelerator; nothing of
    them can be read back.
    """
    parts = (
        text(root / "etc/machine-id") or platform.node(),
        processor(root),
        str(os.cpu_count()),
        board(root) or "",
        accelerator or "",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
