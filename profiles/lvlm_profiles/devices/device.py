"""Device profiles: what a device has, as data, each number with its source.

One JSON file per device in ``devices/`` and no line anywhere else. JSON and not TOML, because the
standard library of JetPack 6's Python 3.10 reads no TOML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles import records

DIRECTORY = Path(__file__).parent
TARGETS = ("cpu", "trt", "rtx")
REMEDY = "mend the device profile, or install lvlm-export again"


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from; None where nobody published or measured it."""

    value: float | None
    source: str


@dataclass(frozen=True)
class PowerMode:
    """A power mode as the vendor names it; None for one without a fixed budget."""

    name: str
    watts: float | None


@dataclass(frozen=True)
class Defaults:
    """Sensible settings for a bundle that is to run there.

    Attributes:
        precision: Element type of weights and activations.
        ratios: Shares of visual tokens kept.
        text_tokens: Longest text of a prompt.
        answer_tokens: Longest answer.
    """

    precision: str
    ratios: tuple[float, ...]
    text_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Device:
    """One device. Rates are peaks of dense arithmetic; GB are 1e9 bytes.

    Attributes:
        name: Name of its file.
        title: As the vendor writes it.
        target: What its engines are built for, in ``TARGETS``.
        compute_capability: ``sm87``, or None for a CPU.
        memory_gb: On a Jetson shared by CPU and GPU.
        reserved_gb: Of it, what others hold.
        bandwidth_gb_s: Of that memory.
        fp32_tflops: Peak rate, in float32 itself, not in TF32.
        fp16_tflops: Peak rate.
        int8_tops: Peak rate.
        fp4_tflops: Peak rate.
        power_modes: As ``nvpmodel`` names them on a Jetson.
        power_source: Where they come from.
        releases: JetPack (or package) -> version of TensorRT.
        releases_source: Where they come from.
        defaults: Sensible settings.
    """

    name: str
    title: str
    target: str
    compute_capability: str | None
    memory_gb: Figure
    reserved_gb: Figure
    bandwidth_gb_s: Figure
    fp32_tflops: Figure
    fp16_tflops: Figure
    int8_tops: Figure
    fp4_tflops: Figure
    power_modes: tuple[PowerMode, ...]
    power_source: str
    releases: dict[str, str]
    releases_source: str
    defaults: Defaults


def device_names() -> tuple[str, ...]:
    """All devices."""
    return records.names_in(DIRECTORY)


def load_device(name: str) -> Device:
    """A device by name.

    Raises:
        UsageError: Unknown; lists the known ones.
        LvlmError: Its file is wrong.
    """
    return read_device(records.path_in(DIRECTORY, name, "device"))


def read_device(path: Path) -> Device:
    """Read a profile strictly: nothing missing, nothing unknown, no number without a source.

    Raises:
        LvlmError: Names the file and the entry that does not fit.
    """
    device = records.read_named(Device, path, REMEDY)
    for entry, wanted, got in _odd_entries(device):
        raise records.mismatch(path, entry, wanted, repr(got), REMEDY)
    return device


def _odd_entries(device: Device) -> Iterator[tuple[str, str, object]]:
    """What no type states: entry, what was expected there, and what is there."""
    if device.target not in TARGETS:
        yield "target", f"one of {', '.join(TARGETS)}", device.target
    for name in ("title", "power_source", "releases_source"):
        if not getattr(device, name):
            yield name, "text", ""
    rates = ("fp32_tflops", "fp16_tflops", "int8_tops", "fp4_tflops")
    for name in ("memory_gb", "reserved_gb", "bandwidth_gb_s", *rates):
        figure: Figure = getattr(device, name)
        if figure.value is not None and not figure.value > 0:
            yield f"{name}.value", "a positive number or null", figure.value
        if not figure.source:
            yield f"{name}.source", "text", ""
    for index, mode in enumerate(device.power_modes):
        if mode.watts is not None and not mode.watts > 0:
            yield f"power_modes[{index}].watts", "a positive number or null", mode.watts
    for ratio in device.defaults.ratios:
        if not 0 < ratio <= 1:
            yield "defaults.ratios", "shares in (0, 1]", ratio
    for name in ("text_tokens", "answer_tokens"):
        if getattr(device.defaults, name) <= 0:
            yield f"defaults.{name}", "a positive count", getattr(device.defaults, name)
