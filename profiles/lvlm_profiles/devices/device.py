"""Device profiles: what a device has, as data, each number with its source.

One JSON file per device in ``devices/`` and no line anywhere else. JSON and not TOML, because the
standard library of JetPack 6's Python 3.10 reads no TOML.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent
TARGETS = ("cpu", "trt", "rtx")


class DeviceError(ValueError):
    """A device that is not known, or a profile file that is wrong; the message is one line."""


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
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))


def load_device(name: str) -> Device:
    """A device by name.

    Raises:
        DeviceError: Unknown, or its file is wrong; says what is.
    """
    if name not in device_names():
        raise DeviceError(f"unknown device {name!r}; known: {', '.join(device_names())}")
    return read_device(DIRECTORY / f"{name}.json")


def read_device(path: Path) -> Device:
    """Read a profile strictly: nothing missing, nothing unknown, no number without a source."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = _exactly(Device, {"name": path.stem, **content}, "")
        for key in ("memory_gb", "reserved_gb", "bandwidth_gb_s"):
            values[key] = _figure(values[key], key)
        for key in ("fp32_tflops", "fp16_tflops", "int8_tops", "fp4_tflops"):
            values[key] = _figure(values[key], key)
        values["power_modes"] = tuple(_mode(each) for each in values["power_modes"])
        values["defaults"] = _defaults(values["defaults"])
        for key in ("title", "power_source", "releases_source"):
            _expect(isinstance(values[key], str) and values[key] != "", f"{key} must be text")
        _expect(values["target"] in TARGETS, f"target must be one of {', '.join(TARGETS)}")
        for key, value in values["releases"].items():
            _expect(isinstance(value, str), f"releases.{key} must be a version as text")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DeviceError(f"{path}: {error}") from None
    return Device(**values)


def _exactly(kind: type, value: Any, where: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), f"{where or 'the file'} must be an object")
    names = {field.name for field in fields(kind)}
    odd = sorted(set(value) ^ names)
    _expect(
        not odd, f"{where}{' has ' if where else ''}missing or unknown entries: {', '.join(odd)}"
    )
    return dict(value)


def _figure(value: Any, where: str) -> Figure:
    figure = Figure(**_exactly(Figure, value, where))
    _expect(_is_number(figure.value), f"{where}.value must be a positive number or null")
    _expect(isinstance(figure.source, str) and figure.source != "", f"{where} has no source")
    return figure


def _mode(value: Any) -> PowerMode:
    mode = PowerMode(**_exactly(PowerMode, value, "power_modes"))
    _expect(isinstance(mode.name, str), "power_modes.name must be text")
    _expect(_is_number(mode.watts), "power_modes.watts must be a positive number or null")
    return mode


def _defaults(value: Any) -> Defaults:
    entry = _exactly(Defaults, value, "defaults")
    ratios = tuple(entry["ratios"])
    _expect(all(0 < ratio <= 1 for ratio in ratios), "defaults.ratios must lie in (0, 1]")
    for key in ("text_tokens", "answer_tokens"):
        _expect(type(entry[key]) is int and entry[key] > 0, f"defaults.{key} must be a count")
    return Defaults(entry["precision"], ratios, entry["text_tokens"], entry["answer_tokens"])


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and value > 0)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
