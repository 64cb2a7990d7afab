"""Warnings, each on a machine that deserves it and on one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvlm_profiles.report import conditions
from lvlm_profiles.statistics import summarize
from trees import plant


def test_free_clocks_are_told_with_the_cure(tmp_path: Path) -> None:
    [jetson] = conditions.unlocked_clocks(plant("orin_nano", tmp_path / "a"))
    assert jetson.code == "unlocked_clocks"
    assert "schedutil, 729 to 1510 MHz" in jetson.message
    assert "gpu: nvhost_podgov" in jetson.message
    assert "sudo jetson_clocks" in jetson.message
    [desktop] = conditions.unlocked_clocks(plant("x86_rapl", tmp_path / "b"))
    assert "cpupower frequency-set -g performance" in desktop.message


def test_locked_clocks_are_fine(tmp_path: Path) -> None:
    assert conditions.unlocked_clocks(plant("agx_orin", tmp_path / "a")) == []
    fixed = plant("x86_rapl", tmp_path / "b", scaling_governor="performance")
    assert conditions.unlocked_clocks(fixed) == []


def test_clocks_that_nobody_shows_are_told(tmp_path: Path) -> None:
    [warning] = conditions.unknown_clocks(tmp_path)
    assert warning.code == "unknown_clocks"
    assert conditions.unknown_clocks(plant("x86_rapl", tmp_path)) == []


@pytest.mark.parametrize(("load", "count"), [(0.1, 0), (0.2, 0), (0.21, 1), (3.0, 1)])
def test_other_load_counts_above_a_tenth_of_the_cores(load: float, count: int) -> None:
    found = conditions.other_load(load, 2)
    assert len(found) == count
    assert all("on 2 cores before the run" in each.message for each in found)


def test_throttle_events_are_counted_over_the_run(tmp_path: Path) -> None:
    before = conditions.throttle_count(plant("x86_rapl", tmp_path))
    assert before == 8
    after = conditions.throttle_count(
        plant("x86_rapl", tmp_path, cpu0__thermal_throttle__core_throttle_count="5")
    )
    [warning] = conditions.thermal(before, after, [])
    assert "2 throttle events" in warning.message
    assert conditions.thermal(before, before, []) == []


def test_a_cooling_device_at_work_is_told_and_a_fan_is_not(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path / "a")
    assert conditions.throttled_devices(root) == [], "the fan slows nothing"
    hot = plant("orin_nano", tmp_path / "b", cooling_device1__cur_state="3")
    assert conditions.throttled_devices(hot) == ["cpufreq-cpu0 at 3"]
    [warning] = conditions.thermal(None, None, conditions.throttled_devices(hot))
    assert "cpufreq-cpu0 at 3" in warning.message
    assert conditions.throttle_count(root) is None


def test_scatter_above_five_percent_is_told() -> None:
    steady, wide = summarize([100.0, 102.0, 98.0]), summarize([100.0, 130.0, 70.0])
    assert conditions.scattered({"TTFT at 1": steady}) == []
    [warning] = conditions.scattered({"TTFT at 1": steady, "TTFT at 0.5": wide})
    assert "TTFT at 0.5 30%" in warning.message
    assert "TTFT at 1" not in warning.message
    assert conditions.scattered({"one": summarize([5.0])}) == []


def test_a_warm_up_that_did_not_settle_is_told() -> None:
    assert conditions.unsettled(True, 4) == []
    [warning] = conditions.unsettled(False, 10)
    assert "after 10 warm-up rounds; give more with --warmup" in warning.message


def test_a_stopwatch_that_disagrees_is_told() -> None:
    assert conditions.wall_difference({"1": 0.019, "0.5": -0.02}) == []
    [warning] = conditions.wall_difference({"1": 0.001, "0.5": 0.05})
    assert "0.5 +5.0%" in warning.message


def test_an_idle_gpu_is_told() -> None:
    assert conditions.idle_desktop(None, None) == []
    assert conditions.idle_desktop(1800.0, 2000.0) == []
    [warning] = conditions.idle_desktop(210.0, 2000.0)
    assert "210 of 2000 MHz" in warning.message
    assert "nvidia-smi -lgc" in warning.message
