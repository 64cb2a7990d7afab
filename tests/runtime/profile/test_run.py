"""What a profile adds to its rounds: conditions, energy, sweeps, memory, predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from families import shared_case
from lvlm_profiles.devices.device import load_device
from lvlm_profiles.devices.nvml import NoGpuError
from lvlm_profiles.missing import Missing
from lvlm_profiles.report.subject import Image, Request
from lvlm_runtime.bundle.bundle import read_manifest
from lvlm_runtime.image import synthetic
from lvlm_runtime.profile import memory_run, predicted, sweep
from lvlm_runtime.profile import run as profile_run
from lvlm_runtime.profile.run import Watch, count_energy
from lvlm_runtime.profile.subject import describe_model
from lvlm_runtime.session import Session
from trees import plant

CPU = Missing("the graphs ran on the CPU")
REQUEST = Request("What?", 22, (Image("a.png", 8, 8, None),), "image", 1, 4)


class FakeMeter:
    """Counts 6 J in 2 s while requests run, and 1 J in half a second before."""

    source, scope = "a meter", "everything"

    def __init__(self) -> None:
        self.blocks = [(1.0, 0.5), (6.0, 2.0)]

    def __enter__(self) -> FakeMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self.joules, self.seconds = self.blocks.pop(0)

    def temperature_c(self) -> float | None:
        return 50.0


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_run, "IDLE_S", 0.0)
    monkeypatch.setattr(profile_run, "ENERGY_S", 0.0)


@pytest.mark.usefixtures("_no_waiting")
def test_energy_of_a_request_and_of_a_token() -> None:
    calls: list[int] = []
    found = count_energy(FakeMeter(), lambda: calls.append(1), answer_tokens=4)
    assert not isinstance(found, Missing)
    assert len(calls) == found.requests == 3
    assert (found.joules_per_request, found.joules_per_token) == (2.0, 0.5)
    assert (found.mean_watts, found.idle_watts, found.temperature_c) == (3.0, 2.0, 50.0)


@pytest.mark.usefixtures("_no_waiting")
def test_a_meter_that_stops_answering_is_a_reason() -> None:
    class Dying(FakeMeter):
        def __exit__(self, *error: object) -> None:
            raise OSError("gone")

    assert count_energy(Dying(), lambda: None, 4) == Missing("a meter stopped answering (gone)")


def codes(watch: Watch) -> list[str]:
    return [caution.code for caution in watch.cautions()]


def test_a_quiet_machine_with_locked_clocks_has_no_cautions(tmp_path: Path) -> None:
    root = plant("x86_rapl", tmp_path, scaling_governor="performance")
    assert codes(Watch(CPU, 0.0, root)) == []


def test_every_condition_is_noticed(tmp_path: Path) -> None:
    root = plant("x86_rapl", tmp_path)
    clocks = iter([(210.0, 2000.0)])
    gpu: Any = SimpleNamespace(clocks_mhz=lambda: next(clocks), too_hot=lambda: True)
    watch, messages = Watch(gpu, 99.0, root), []
    for phase in ("warming up", "warming up", "measuring", "measuring"):
        watch.note(phase, messages.append)
    assert messages == ["warming up", "measuring"], "each phase is reported once"
    found = watch.cautions()
    assert [each.code for each in found] == [
        "unlocked_clocks",
        "other_load",
        "thermal_throttling",
        "idle_state",
    ]
    assert "the GPU's clock" in found[2].message


def test_a_gpu_that_does_not_tell_its_clock_is_no_caution(tmp_path: Path) -> None:
    def refuse() -> None:
        raise NoGpuError("not supported")

    root = plant("x86_rapl", tmp_path, scaling_governor="performance")
    gpu: Any = SimpleNamespace(clocks_mhz=refuse, too_hot=refuse)
    watch = Watch(gpu, 0.0, root)
    watch.note("measuring", lambda _: None)
    assert codes(watch) == []


def test_a_sweep_has_a_curve_per_subgraph_that_takes_tokens(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "CALLS", 2)
    monkeypatch.setattr(sweep, "POINTS", 4)
    session = Session.open(demo_bundle, "onnxruntime", "cpu", threads=1)
    found = {curve.stage: curve for curve in sweep.sweep_subgraphs(session, lambda _: None)}
    decoder = ["decoder.0", "decoder.1", "decoder.2"]
    assert list(found) == ["vision.1", "vision.2", "vision.3", *decoder]
    assert [point.tokens for point in found["vision.1"].points] == [49, 98, 147, 196]
    assert [point.tokens for point in found["decoder.0"].points] == [65, 130, 195, 260]
    assert all(len(p.samples_ms) == 2 and p.median_ms > 0 for p in found["decoder.1"].points)


def test_a_sweep_feeds_whatever_a_subgraph_takes(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places in the tower, three positions and planes in the decoder."""
    monkeypatch.setattr(sweep, "CALLS", 2)
    monkeypatch.setattr(sweep, "POINTS", 2)
    session = Session.open(shared_case("qwen3_vl", shared).bundle, "onnxruntime", "cpu", threads=1)
    found = {curve.stage: curve for curve in sweep.sweep_subgraphs(session, lambda _: None)}
    assert [point.tokens for point in found["vision.1"].points] == [18, 35]
    assert [point.tokens for point in found["decoder.0"].points] == [50, 99]


def test_token_counts_are_even_and_end_at_the_longest() -> None:
    assert sweep.token_counts(160, 4) == (40, 80, 120, 160)
    assert sweep.token_counts(3, 16) == (1, 2, 3)


def test_flops_predict_and_the_roofline_is_the_devices(demo_bundle: Path) -> None:
    manifest = read_manifest(demo_bundle)
    plain = predicted.predict_costs(manifest, (1.0, 0.33), 1.0, REQUEST)
    assert not isinstance(plain, Missing)
    assert plain[1.0].speedup == 1.0
    assert plain[0.33].speedup == pytest.approx(plain[1.0].flops / plain[0.33].flops)
    assert plain[0.33].roofline_ms is None
    assert plain[0.33].path.text_tokens == 22
    half = replace(manifest, precision="float16")
    orin = predicted.predict_costs(half, (1.0,), 1.0, REQUEST, load_device("agx_orin_64gb"))
    assert not isinstance(orin, Missing)
    beside = orin[1.0].beside(10.0)
    assert beside.device == "agx_orin_64gb"
    assert beside.roofline_ms is not None
    assert beside.roofline_share == pytest.approx(beside.roofline_ms / 10.0)
    # A device without published rates has no roofline.
    cpu = predicted.predict_costs(manifest, (1.0,), 1.0, REQUEST, load_device("x86_cpu"))
    assert not isinstance(cpu, Missing)
    assert cpu[1.0].beside(10.0).roofline_share is None


def test_without_pictures_nothing_is_predicted(demo_bundle: Path) -> None:
    text_only = replace(REQUEST, layout=None, images=())
    assert predicted.predict_costs(read_manifest(demo_bundle), (1.0,), 1.0, text_only) == Missing(
        "without pictures every budget costs the same"
    )


def test_a_revision_stands_behind_the_models_name(demo_bundle: Path) -> None:
    manifest = read_manifest(demo_bundle)
    assert describe_model(manifest).revision is None
    found = describe_model(replace(manifest, model="org/model@abc123"))
    assert (found.name, found.revision) == ("org/model", "abc123")
    assert describe_model(replace(manifest, model="/home/me/secret/model")).name == "model"


def test_memory_that_cannot_be_measured_is_a_reason(tmp_path: Path) -> None:
    job = memory_run.Job(str(tmp_path), "onnxruntime", "cpu", None, "What?", (), 0, 1.0, 4)
    found = memory_run.read_memory(job)
    assert isinstance(found, Missing)
    assert found.reason.startswith("the process that measures memory failed: ")
    assert "is not a bundle" in found.reason


def test_the_made_up_picture_is_the_same_every_time() -> None:
    one, other = synthetic.picture(), synthetic.picture()
    assert one.shape == (480, 640, 3)
    np.testing.assert_array_equal(one, other)
    assert one.std() > 30, "not one colour"
