"""Peak memory: of this process, of a polled source, and which of them fits where."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lvlm_profiles.devices.memory_probe import PolledProbe, ResidentProbe, open_probe, unified_bytes
from lvlm_profiles.missing import Missing
from trees import plant

MEGABYTES = 60
NO_NVML = Missing("nvidia-ml-py is not installed")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs")
def test_the_peak_of_this_process_is_seen_after_it_is_freed() -> None:
    probe = ResidentProbe()
    with probe:
        before = probe.used_bytes()
        np.ones(MEGABYTES * 1_000_000, np.uint8)
    assert probe.peak_bytes - before == pytest.approx(MEGABYTES * 1e6, rel=0.1)
    with probe:
        pass
    assert probe.peak_bytes - before < MEGABYTES * 0.5e6, "an earlier peak is forgotten"


def test_a_polled_source_keeps_its_highest_reading() -> None:
    readings = iter([100, 900])
    probe = PolledProbe("device", lambda: next(readings, 200))
    with probe:
        time.sleep(0.05)
    assert probe.peak_bytes == 900
    assert probe.used_bytes() == 200


def test_shared_memory_of_a_jetson_is_what_is_not_available(tmp_path: Path) -> None:
    assert unified_bytes(plant("orin_nano", tmp_path)) == (7802016 - 5000000) * 1024


def test_every_place_has_its_probe_or_a_reason(tmp_path: Path) -> None:
    jetson = plant("orin_nano", tmp_path / "jetson")
    found = open_probe("cuda", NO_NVML, jetson)
    assert isinstance(found, PolledProbe)
    assert (found.kind, found.used_bytes()) == ("unified", 2802016 * 1024)
    gpu: Any = SimpleNamespace(used_bytes=lambda: 5)
    desktop = open_probe("cuda", gpu, tmp_path)
    assert isinstance(desktop, PolledProbe)
    assert (desktop.kind, desktop.used_bytes()) == ("device", 5)
    assert open_probe("cuda", NO_NVML, tmp_path) == Missing(
        "no NVML to read device memory with (nvidia-ml-py is not installed)"
    )
    assert "no /proc/self/clear_refs" in str(open_probe("cpu", NO_NVML, tmp_path))


def test_a_status_without_the_entry_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\n", encoding="utf-8")
    with pytest.raises(OSError, match="has no VmRSS"):
        ResidentProbe(tmp_path).used_bytes()
