"""Reading a machine's description, on the file systems of other machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_profiles.devices import machine
from trees import plant


def test_an_orin_nano(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path)
    assert machine.board(root) == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    assert machine.processor(root) == "ARMv8 Processor rev 1 (v8l)"
    assert machine.power_mode(root) == "15W"
    assert machine.clocks(root) == {
        "cpu policy0": "schedutil, 729 to 1510 MHz",
        "gpu": "nvhost_podgov, 306 to 624 MHz",
    }
    assert machine.temperature_c(root) == 52.25
    assert machine.memory_info(root)["MemTotal"] == 7802016 * 1024
    assert machine.system(root).startswith("Ubuntu 22.04.4 LTS, Jetson Linux R36.4.0, Linux ")


def test_a_desktop_has_no_board_and_no_power_mode(tmp_path: Path) -> None:
    root = plant("x86_rapl", tmp_path)
    assert machine.board(root) is None
    assert machine.power_mode(root) is None
    assert machine.processor(root) == "Some x86 CPU @ 3.00GHz"


@pytest.mark.parametrize(("status", "name"), [("pmode:0001", "7W"), ("pmode:0007", "mode 7")])
def test_power_modes_by_number(status: str, name: str, tmp_path: Path) -> None:
    assert machine.power_mode(plant("orin_nano", tmp_path, nvpmodel__status=status)) == name


def test_an_empty_file_system_says_nothing(tmp_path: Path) -> None:
    assert machine.clocks(tmp_path) == {}
    assert machine.temperature_c(tmp_path) is None
    assert machine.memory_info(tmp_path) == {}
    assert machine.board(tmp_path) is None


def test_fingerprints_tell_machines_apart_and_repeat(tmp_path: Path) -> None:
    one = plant("orin_nano", tmp_path / "a")
    other = plant("orin_nano", tmp_path / "b")
    (other / "etc/machine-id").write_text("another", encoding="utf-8")
    assert machine.fingerprint(one) == machine.fingerprint(one)
    assert machine.fingerprint(one) != machine.fingerprint(other)
    assert machine.fingerprint(one) != machine.fingerprint(one, "some GPU")
    assert len(machine.fingerprint(one)) == 12


def test_this_machine_can_be_described() -> None:
    assert machine.cores() >= 1
    assert machine.processor()
    assert machine.memory_info()["MemTotal"] > 0
