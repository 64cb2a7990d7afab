"""Device profiles: every file is complete, and a wrong one is refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lvlm_profiles.devices.device import (
    DIRECTORY,
    DeviceError,
    device_names,
    load_device,
    read_device,
)

WANTED = {
    *("orin_nano_8gb", "orin_nano_super_8gb", "orin_nx_16gb", "agx_orin_32gb", "agx_orin_64gb"),
    *("agx_thor_128gb", "rtx_3060", "rtx_4090", "rtx_5090", "dgx_spark", "x86_cpu"),
}


def test_all_devices_are_there() -> None:
    assert set(device_names()) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_profile_is_complete(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert (device.compute_capability is None) == (device.target == "cpu")
    if device.target != "cpu":
        assert device.memory_gb.value is not None
        assert device.bandwidth_gb_s.value is not None
        assert device.reserved_gb.value is not None
        assert device.releases
        assert device.power_modes
    assert device.defaults.precision in ("fp16", "fp32")


def test_a_jetsons_name_says_its_memory() -> None:
    for name in WANTED:
        if name.endswith("gb"):
            device = load_device(name)
            assert device.memory_gb.value == float(name.rsplit("_", 1)[1].removesuffix("gb"))
            assert device.target == "trt"


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'nano'; known: agx_orin_32gb, "):
        load_device("nano")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title must be text"),
        ({"target": "tpu"}, "target must be one of cpu, trt, rtx"),
        ({"colour": "red"}, "missing or unknown entries: colour"),
        ({"memory_gb": 8}, "memory_gb must be an object"),
        ({"memory_gb": {"value": -1, "source": "x"}}, "memory_gb.value must be a positive number"),
        ({"memory_gb": {"value": True, "source": "x"}}, "memory_gb.value must be a positive"),
        ({"memory_gb": {"value": 8, "source": ""}}, "memory_gb has no source"),
        ({"memory_gb": {"value": 8}}, "memory_gb has missing or unknown entries: source"),
        ({"power_modes": [{"name": "x", "watts": "9"}]}, "power_modes.watts must be a positive"),
        ({"releases": {"JetPack": 6}}, "releases.JetPack must be a version"),
        (
            {
                "defaults": {
                    "precision": "fp16",
                    "ratios": [2],
                    "text_tokens": 1,
                    "answer_tokens": 1,
                }
            },
            r"defaults.ratios must lie in \(0, 1\]",
        ),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((DIRECTORY / "orin_nano_8gb.json").read_text(encoding="utf-8"))
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(DeviceError, match=message):
        read_device(path)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DeviceError, match=r"odd\.json: "):
        read_device(path)
