"""On a machine with an NVIDIA GPU: ONNX Runtime's CUDA provider first, then TensorRT.

Deselected by default; ``make test-gpu`` runs it and prints why it skips where something is missing.
Every backend must give the CPU chain's tokens on the demo bundle at 1.0 and 0.33; its versions and
the time of each stage go into ``benchmarks/results/gpu.<backend>.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from lvlm_export.demo.questions import evaluation_set
from lvlm_runtime.backends.clock import clock_of
from lvlm_runtime.backends.onnxruntime import why_no_cuda
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.engines.build import EngineSettings, build_engines
from lvlm_runtime.engines.limits import default_limits
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.session import Session
from lvlm_runtime.tensorrt.cuda import open_driver
from lvlm_runtime.tensorrt.library import open_library

pytestmark = pytest.mark.gpu

RATIOS = (1.0, 0.33)
SAMPLES, ROUNDS, TOKENS = 50, 10, 8
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class Pair:
    """One bundle on the GPU and on the CPU.

    Attributes:
        name: Of the report.
        gpu: The backend under test.
        cpu: ONNX Runtime on the CPU.
        library: What runs it, with its version.
        equal: Share of samples whose tokens must be equal.
    """

    name: str
    gpu: Session
    cpu: Session
    library: str
    equal: float


def build_demo(folder: Path, **options: Any) -> Path:
    from helpers import build_tiny
    from lvlm_export.demo import CHECKPOINT

    directory: Path = build_tiny(CHECKPOINT, folder / "bundle", 0.33, **options).directory
    return directory


def onnxruntime_cuda(folder: Path) -> Pair:
    reason = why_no_cuda()
    if reason is not None:
        pytest.skip(f"no CUDA device for ONNX Runtime: {reason}")
    import onnxruntime

    bundle = build_demo(folder, target="cuda", precision="fp32")
    gpu = Session.open(bundle, "onnxruntime", "cuda")
    cpu = Session.open(bundle, "onnxruntime", "cpu")
    return Pair("onnxruntime-cuda", gpu, cpu, f"ONNX Runtime {onnxruntime.__version__}", 1.0)


def tensorrt(folder: Path, target: str) -> Pair:
    try:
        cuda, library = open_driver(), open_library(target)
    except LvlmError as error:
        pytest.skip(str(error))
    capability = cuda.compute_capability
    known = getattr(library.module, "ComputeCapability", None)
    if target == "rtx" and not hasattr(known, capability.upper()):
        pytest.skip(f"{library.title} has no engines for {cuda.name} ({capability})")
    directory = build_demo(folder, target=target)
    bundle = Bundle.open(directory)
    limits = default_limits(bundle.manifest)
    build_engines(bundle, EngineSettings(target, limits, (capability,)))
    gpu = Session.open(directory, "tensorrt")
    # Both are fp16, and their kernels round in another order: a near tie may fall the other way.
    return Pair(
        f"tensorrt-{target}",
        gpu,
        Session.open(directory, "onnxruntime", "cpu"),
        library.title,
        0.95,
    )


def driver() -> str:
    """The kernel module's own line; a Jetson names its release elsewhere."""
    for path in (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")):
        if path.exists():
            return path.read_text(encoding="utf-8").splitlines()[0]
    return "not found"


MAKERS: dict[str, Callable[[Path], Pair]] = {
    "onnxruntime-cuda": onnxruntime_cuda,
    "tensorrt-rtx": lambda folder: tensorrt(folder, "rtx"),
    "tensorrt-trt": lambda folder: tensorrt(folder, "trt"),
}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return MAKERS[request.param](tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("ratio", RATIOS)
def test_answers_equal_those_of_the_cpu(pair: Pair, ratio: float) -> None:
    assert pair.gpu.chain.backend.device == "cuda"
    different = []
    for sample in evaluation_set(SAMPLES, seed=3):
        answers = [
            session.generate(sample.question, [sample.image], ratio, max_new_tokens=TOKENS)
            for session in (pair.gpu, pair.cpu)
        ]
        if answers[0].token_ids != answers[1].token_ids:
            different.append(sample.question)
    assert len(different) <= (1 - pair.equal) * SAMPLES, different


def test_caches_stay_on_the_device(pair: Pair) -> None:
    chain = pair.gpu.chain
    state, _ = chain.prefill([[5, 6, 7]], None, None, 4, Recorder())
    for group in state.groups:
        for buffer in group.buffers.values():
            if pair.name == "onnxruntime-cuda":
                assert buffer.device_name() == "cuda"
            else:
                assert buffer.address


def test_decoding_is_captured(pair: Pair) -> None:
    backend: Any = pair.gpu.chain.backend
    if not hasattr(backend, "runners"):
        pytest.skip(f"{pair.name} captures nothing itself")
    [sample] = evaluation_set(1, seed=4)
    pair.gpu.generate(sample.question, [sample.image], 1.0, max_new_tokens=TOKENS, ignore_stop=True)
    taken = backend.arena.allocations
    pair.gpu.generate(sample.question, [sample.image], 1.0, max_new_tokens=TOKENS, ignore_stop=True)
    assert backend.arena.allocations == taken
    if pair.gpu.bundle.manifest.dialect == "opset24":
        stages = pair.gpu.chain.manifest.decoder
        assert all(backend.runners[stage.graph].policy.captured for stage in stages)


def test_the_report_is_written(pair: Pair) -> None:
    """Device, driver and the time of every stage; medians over interleaved rounds."""
    cuda = open_driver()
    [sample] = evaluation_set(1, seed=4)
    times: dict[float, dict[str, list[float]]] = {ratio: {} for ratio in RATIOS}
    clock = clock_of(pair.gpu.chain.backend)
    for number in range(ROUNDS + 1):
        for ratio in RATIOS:
            recorder = Recorder(clock=clock)
            answer = pair.gpu.generate(
                sample.question,
                [sample.image],
                ratio,
                max_new_tokens=TOKENS,
                recorder=recorder,
                ignore_stop=True,
            )
            sums: dict[str, float] = {"first token": answer.time_to_first_token_ms}
            for span in recorder.spans:
                key = f"{span.phase} {span.name}"
                share = span.duration_ms / (TOKENS - 1 if span.phase == "decode" else 1)
                sums[key] = sums.get(key, 0.0) + share
            for key, value in sums.items():
                if number:
                    times[ratio].setdefault(key, []).append(value)
    report = {
        "device": cuda.name,
        "compute_capability": cuda.compute_capability,
        "driver": driver(),
        "driver_cuda": cuda.version,
        "library": pair.library,
        "dialect": pair.gpu.bundle.manifest.dialect,
        "precision": pair.gpu.bundle.manifest.precision,
        "model": "demo",
        "clock": clock.name,
        "rounds": ROUNDS,
        "milliseconds": {
            f"{ratio:g}": {key: round(median(values), 4) for key, values in found.items()}
            for ratio, found in times.items()
        },
    }
    path = RESULTS / f"gpu.{pair.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for found in times.values():
        assert found["first token"]
        assert all(value > 0 for values in found.values() for value in values)
