"""Device profiles: every file is complete, and a wrong one is refused with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lvlm_profiles.devices.device import DIRECTORY, device_names, load_device, read_device
from lvlm_profiles.errors import LvlmError, UsageError

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
    with pytest.raises(
        UsageError,
        match=r"unknown device 'nano'; did you mean 'orin_nano_8gb'\? known: agx_orin_32gb, ",
    ):
        load_device("nano")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title: expected str, got None"),
        ({"title": ""}, "title: expected text, got ''"),
        ({"target": "tpu"}, "target: expected one of cpu, trt, rtx, got 'tpu'"),
        ({"colour": "red"}, "expected exactly the known entries, got unknown 'colour'"),
        ({"memory_gb": 8}, "memory_gb: expected an object, got 8"),
        (
            {"memory_gb": {"value": -1, "source": "x"}},
            r"memory_gb.value: expected a positive number or null, got -1\.0",
        ),
        (
            {"memory_gb": {"value": float("nan"), "source": "x"}},
            r"is no JSON \(it holds a number that is infinite or none",
        ),
        ({"memory_gb": {"value": True, "source": "x"}}, "memory_gb.value: expected a number"),
        ({"memory_gb": {"value": 8, "source": ""}}, "memory_gb.source: expected text, got ''"),
        ({"memory_gb": {"value": 8}}, "memory_gb: expected exactly the known .* got no 'source'"),
        (
            {"power_modes": [{"name": "x", "watts": "9"}]},
            r"power_modes\[0\]\.watts: expected a number, got '9'",
        ),
        (
            {"power_modes": [{"name": "x", "watts": 0}]},
            r"power_modes\[0\]\.watts: expected a positive number or null, got 0\.0",
        ),
        ({"releases": {"JetPack": 6}}, "releases.JetPack: expected str, got 6"),
        (
            {
                "defaults": {
                    "precision": "fp16",
                    "ratios": [1],
                    "text_tokens": 0,
                    "answer_tokens": 1,
                }
            },
            "defaults.text_tokens: expected a positive count, got 0",
        ),
        (
            {
                "defaults": {
                    "precision": "fp16",
                    "ratios": [2],
                    "text_tokens": 1,
                    "answer_tokens": 1,
                }
            },
            r"defaults.ratios: expected shares in \(0, 1\], got 2",
        ),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = json.loads((DIRECTORY / "orin_nano_8gb.json").read_text(encoding="utf-8"))
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(LvlmError, match=message) as refused:
        read_device(path)
    assert not isinstance(refused.value, UsageError)
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith("; mend the device profile, or install lvlm-export again")


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LvlmError, match=r"odd\.json is damaged: it is no JSON .*; mend the device"):
        read_device(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(
        LvlmError, match=r"odd\.json: expected an object, got \[\]; mend the device"
    ):
        read_device(path)
