"""Energy readers on other machines' file systems, lines and libraries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvlm_profiles.devices.nvml import Gpu, NoGpuError, find_gpu, open_gpu
from lvlm_profiles.energy import PowerMeter, find_meter, ina3221, integrate, rapl, tegrastats
from lvlm_profiles.missing import Missing
from trees import DATA, plant

NO_GPU = Missing("the graphs ran on the CPU")
NO_NVML = Missing("no NVML")


def line(name: str) -> tegrastats.TegrastatsLine:
    return tegrastats.parse((DATA / f"tegrastats_{name}.txt").read_text(encoding="utf-8"))


def test_an_orin_nano_has_a_rail_for_the_whole_module(tmp_path: Path) -> None:
    meter = find_meter("cuda", NO_NVML, plant("orin_nano", tmp_path))
    assert isinstance(meter, PowerMeter)
    assert meter.source == "INA3221 VDD_IN"
    assert meter.scope == "the whole module: CPU, GPU and memory"
    with meter:
        pass
    assert meter.joules == pytest.approx(6.0 * meter.seconds)
    assert meter.temperature_c() == 52.25


def test_rails_of_an_agx_orin_add_up_without_counting_one_twice(tmp_path: Path) -> None:
    root = plant("agx_orin", tmp_path)
    assert [rail.name for rail in ina3221.rails(root)] == [
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    ]
    meter = find_meter("cpu", NO_GPU, root)
    assert isinstance(meter, PowerMeter)
    assert meter.source == "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    with meter:
        pass
    assert meter.joules == pytest.approx((7.92 + 1.98 + 4.0) * meter.seconds)


def test_unknown_rails_are_no_measurement(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path, in1_label="VDD_ODD")
    assert "rails VDD_CPU_GPU_CV, VDD_ODD, VDD_SOC are of no board known here" in str(
        find_meter("cuda", NO_NVML, root)
    )


def test_a_rail_that_does_not_answer_is_no_measurement(tmp_path: Path) -> None:
    root = plant("orin_nano", tmp_path, curr1_input=None)
    assert "the power rail VDD_IN cannot be read" in str(ina3221.open_meter(root, NO_GPU))


def test_a_jetson_without_sensors_and_tegrastats_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    root = plant("orin_nano", tmp_path, hwmon1__name="other")
    assert find_meter("cuda", NO_NVML, root) == Missing(
        "no INA3221 power sensor under /sys/class/hwmon; tegrastats is not installed"
    )


def test_lines_of_tegrastats() -> None:
    nano = line("orin_nano")
    assert nano.watts == {"VDD_IN": 6.04, "VDD_CPU_GPU_CV": 2.01, "VDD_SOC": 1.49}
    assert nano.ram_bytes == 2_543_000_000
    assert max(nano.temperatures_c.values()) == 52.25
    assert "cv0" not in nano.temperatures_c, "powered down, it reads -256"
    agx = line("agx_orin")
    assert agx.watts["VIN_SYS_5V0"] == 4.0
    assert ina3221.module_rails(tuple(agx.watts)) == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert line("older").watts == nano.watts
    assert tegrastats.parse("nothing of the kind") == tegrastats.TegrastatsLine({}, {}, None)


def test_tegrastats_is_the_other_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "tegrastats"
    program.parent.mkdir()
    text = (DATA / "tegrastats_orin_nano.txt").read_text(encoding="utf-8").strip()
    program.write_text(f"#!/bin/sh\nwhile echo '{text}'; do sleep 0.02; done\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    meter = find_meter("cuda", NO_NVML, plant("orin_nano", tmp_path, hwmon1__name="other"))
    assert isinstance(meter, PowerMeter)
    assert meter.source == "tegrastats VDD_IN"
    with meter:
        pass
    assert meter.joules == pytest.approx(6.04 * meter.seconds)
    assert meter.temperature_c() == 52.25


def test_rapl_counts_packages_and_memory_and_passes_the_end_of_a_counter(tmp_path: Path) -> None:
    root = plant("x86_rapl", tmp_path)
    meter = find_meter("cpu", NO_GPU, root)
    assert not isinstance(meter, Missing)
    assert (meter.source, meter.scope) == ("RAPL dram + package-0", "the processor and its memory")
    zones = root / "sys/class/powercap"
    with meter:
        # The package passes its range of 262143328850 µJ; the memory counts on.
        (zones / "intel-rapl:0/energy_uj").write_text("4671150", encoding="utf-8")
        (zones / "intel-rapl:0:1/energy_uj").write_text("6000000", encoding="utf-8")
    assert meter.joules == pytest.approx((328850 + 4671150 + 1000000) / 1e6)
    assert meter.temperature_c() == 61.0


def test_rapl_that_only_root_reads_says_so(tmp_path: Path) -> None:
    root = plant("x86_rapl", tmp_path, energy_uj=None)
    assert find_meter("cpu", NO_GPU, root) == Missing(rapl.UNREADABLE)


def test_no_meter_says_why(tmp_path: Path) -> None:
    assert find_meter("cpu", NO_GPU, tmp_path) == Missing(
        "no RAPL counters under /sys/class/powercap (a virtual machine or container?)"
    )
    assert find_meter("cuda", NO_NVML, tmp_path) == NO_NVML


def test_a_power_curve_is_integrated_by_trapezoids() -> None:
    assert integrate([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == 55.0
    assert integrate([(0.0, 10.0)]) == 0.0


class FakeNvml(SimpleNamespace):
    """What is used of ``pynvml``; ``energy`` None is a GPU before Volta."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1

    def __init__(self, energy: list[int] | None) -> None:
        super().__init__(energy=energy)

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": b"Some GPU",
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetPowerUsage": 75_000,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetClockInfo": 300,
            "nvmlDeviceGetMaxClockInfo": 2100,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=9000, used=5000),
        }

        def answer(*_: Any) -> Any:
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                if self.energy is None:
                    raise self.NVMLError("Not Supported")
                return self.energy.pop(0)
            return answers[name]

        return answer


def test_a_gpu_that_counts_energy() -> None:
    gpu = open_gpu(library=FakeNvml([0, 1000, 13_500]))
    meter = find_meter("cuda", gpu, Path("/nowhere"))
    assert not isinstance(meter, Missing)
    assert meter.source == "NVML energy counter"
    with meter:
        pass
    assert meter.joules == 12.5
    assert meter.temperature_c() == 55.0


def test_a_gpu_that_shows_only_power() -> None:
    meter = find_meter("cuda", open_gpu(library=FakeNvml(None)), Path("/nowhere"))
    assert isinstance(meter, PowerMeter)
    with meter:
        pass
    assert meter.joules == pytest.approx(75.0 * meter.seconds)


def test_what_a_gpu_says() -> None:
    gpu = open_gpu(library=FakeNvml([0]))
    assert (gpu.name, gpu.driver) == ("Some GPU", "580.1")
    assert gpu.clocks_mhz() == (300.0, 2100.0)
    assert gpu.too_hot()
    assert gpu.used_bytes() == 5000


def test_a_missing_library_or_driver_is_a_reason() -> None:
    class Dead(FakeNvml):
        def nvmlInit(self) -> None:  # noqa: N802
            raise self.NVMLError("Driver Not Loaded")

    with pytest.raises(NoGpuError, match="NVML does not answer: Driver Not Loaded"):
        open_gpu(library=Dead(None))
    assert isinstance(Gpu(FakeNvml([0]), "handle"), Gpu)


def test_without_the_package_the_reason_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoGpuError, match="nvidia-ml-py is not installed"):
        open_gpu()
    assert find_gpu("cuda") == Missing("nvidia-ml-py is not installed")


def test_a_run_on_the_cpu_has_no_gpu_to_ask() -> None:
    assert find_gpu("cpu") == NO_GPU
