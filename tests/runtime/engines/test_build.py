"""NVIDIA's parser and builder on every graph of small random bundles; no GPU is needed to build."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import typed
from fake_cuda import FakeDriver
from helpers import build_tiny
from lvlm_export.cli.commands.engines import compute_capabilities
from lvlm_runtime.backends.tensorrt import TensorRtBackend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.build import EngineSettings, build_engines
from lvlm_runtime.engines.builder import build_engine
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import plan_engines
from lvlm_runtime.engines.record import RECORD, check_record, directory_of, read_record
from lvlm_runtime.engines.turing import multiply_in_half
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.gate import check_bundle
from lvlm_runtime.tensorrt import cuda as cuda_driver
from lvlm_runtime.tensorrt.cuda import CudaDriver
from lvlm_runtime.tensorrt.library import RTX_COMPUTE_CAPABILITIES, open_library

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: make setup brings it")

RATIOS = (0.5, 0.33)
SETTINGS = EngineSettings("rtx", Limits(64, 32, 1), RTX_COMPUTE_CAPABILITIES)
# What an engine holds beside its weights: kernels, per profile; measured 0.3 to 2.5 MB.
KERNELS_PER_PROFILE = 4_000_000


@pytest.fixture(scope="module")
def heads_of_16() -> Iterator[None]:
    """TensorRT has no attention kernel for the 8 values per head of the usual tiny tower."""
    usual = tiny.vision_config

    def wider(*words: object, **options: object) -> object:
        config = usual(*words, **options)  # type: ignore[arg-type]
        config.num_attention_heads = 2
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "vision_config", wider)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, heads_of_16: None) -> Bundle:
    """LLaVA with a CLS token, three budgets, and all its engines."""
    directory = tmp_path_factory.mktemp("engines")
    checkpoint = tiny.llava(directory / "checkpoint")
    built = build_tiny(checkpoint, directory / "bundle", *RATIOS, target="rtx").directory
    result = build_engines(Bundle.open(built), SETTINGS)
    assert result.peak_memory_bytes > 10**7
    return Bundle.open(built)


def test_every_graph_becomes_an_engine(bundle: Bundle) -> None:
    record = read_record(bundle.directory, "rtx")
    assert record is not None
    graphs = {name for name in bundle.manifest.files if name.endswith(".onnx")}
    assert set(record.engines) == graphs
    for engine in record.engines.values():
        path = directory_of(bundle.directory, "rtx") / engine.file
        assert path.stat().st_size == engine.size_bytes > engine.weights_bytes
        kernels = engine.size_bytes - engine.weights_bytes
        assert kernels < KERNELS_PER_PROFILE * max(1, len(engine.profiles)), engine.file
    budgets = len(bundle.manifest.budgets)
    assert {len(record.engines[s.graph].profiles) for s in bundle.manifest.decoder} == {budgets + 1}


def test_the_gate_passes_what_the_parser_takes(bundle: Bundle) -> None:
    assert check_bundle(bundle, "rtx") == []
    result = typed("check", bundle.directory, "--target", "rtx")
    assert result.stdout.startswith("PASS  TensorRT-RTX 1.7 takes all ")
    found = json.loads(typed("check", bundle.directory, "--target", "trt-10.3", "--json").stdout)
    assert not found["passed"]
    firsts = {each["op"]: each["first"] for each in found["violations"]}
    assert firsts["TensorScatter"] == "TensorRT 10.15"


def test_the_same_command_builds_nothing_again(bundle: Bundle) -> None:
    assert build_engines(bundle, SETTINGS).built == ()
    damaged = directory_of(bundle.directory, "rtx") / "assemble.engine"
    damaged.write_bytes(b"short")
    assert build_engines(bundle, SETTINGS).built == ("assemble.onnx",)


def test_the_command_prints_weights_engines_and_overhead(bundle: Bundle) -> None:
    words = ["engines", bundle.directory, "--text-tokens", "64", "--answer-tokens", "32"]
    result = typed(*words)
    assert result.exit_code == 0, result.stderr
    assert "decoder.1.onnx" in result.stdout
    assert "overhead" in result.stdout
    assert "sm80, sm86, sm89, sm120, sm121" in result.stdout
    assert json.loads(typed(*words, "--json").stdout)["built"] == []


def test_a_record_that_does_not_fit_is_refused_with_the_command(bundle: Bundle) -> None:
    record = read_record(bundle.directory, "rtx")
    assert record is not None
    version = open_library("rtx").version

    def check(
        record: object = record,
        version: str = version,
        capability: str = "sm89",
        target: str = "rtx",
        cuda: str = "13.0",
    ) -> None:
        check_record(
            bundle.directory,
            bundle.manifest,
            record,  # type: ignore[arg-type]
            target,
            version,
            capability,
            cuda,
        )

    check()
    command = f"lvlm-export engines {bundle.directory} --target rtx"
    with pytest.raises(LvlmError, match=f"has no engines for rtx; build them: {command}"):
        check(record=None)
    with pytest.raises(LvlmError, match=r"built by version .* and this is 9\.9"):
        check(version="9.9")
    with pytest.raises(LvlmError, match="this GPU is sm87"):
        check(capability="sm87")
    other = dataclasses.replace(record, content_key="0")
    with pytest.raises(LvlmError, match="built from another bundle"):
        check(record=other)
    precise = dataclasses.replace(record, precision="float32")
    with pytest.raises(LvlmError, match="are float32 and the bundle is float16; build them"):
        check(record=precise)
    older = dataclasses.replace(record, target="trt", cuda_version="12.6")
    check(record=older, target="trt", cuda="12.9")
    check(record=older, cuda="13.0")
    with pytest.raises(LvlmError, match=r"under CUDA 12\.6 and this driver has 13\.0; build them"):
        check(record=older, target="trt")
    fewer = dict(record.engines)
    del fewer["lm_head.onnx"]
    with pytest.raises(LvlmError, match=r"no engine of lm_head\.onnx"):
        check(record=dataclasses.replace(record, engines=fewer))


def test_a_record_of_another_version_says_how_to_build_again(
    bundle: Bundle, tmp_path: Path
) -> None:
    path = directory_of(tmp_path, "rtx") / RECORD
    path.parent.mkdir(parents=True)
    content = json.loads((directory_of(bundle.directory, "rtx") / RECORD).read_text("utf-8"))
    path.write_text(json.dumps({**content, "schema": 1}), encoding="utf-8")
    with pytest.raises(LvlmError, match=r"has schema 1 and this version reads 2; build them: "):
        read_record(tmp_path, "rtx")


def test_a_command_that_fails_leaves_the_engines_alone(bundle: Bundle) -> None:
    before = read_record(bundle.directory, "rtx")
    result = typed("engines", bundle.directory, "--compute-capability", "sm87")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("knows no compute capability sm87")
    assert read_record(bundle.directory, "rtx") == before
    assert build_engines(bundle, SETTINGS).built == ()


def test_a_bundle_for_the_cpu_is_refused_before_tensorrt_sees_it(demo_bundle: Path) -> None:
    result = typed("engines", demo_bundle)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert re.match(r"error: TensorRT-RTX 1\.7 does not take \d+ of \d+ graphs of ", line)
    assert line.endswith("; build a bundle with --target rtx")
    assert not (demo_bundle / "engines").exists()


@pytest.mark.parametrize("dialect", ["opset24", pytest.param("decomposed", marks=pytest.mark.slow)])
def test_turing_takes_every_graph(bundle: Bundle, dialect: str, tmp_path: Path) -> None:
    """Weighted graphs multiply in half precision anyway, for Turing reducers do as well."""
    if dialect == "decomposed":
        checkpoint = tiny.llava(tmp_path / "checkpoint")
        options = {"target": "rtx", "dialect": dialect}
        bundle = Bundle.open(build_tiny(checkpoint, tmp_path / "bundle", 0.5, **options).directory)
    library = open_library("rtx")
    specs = plan_engines(bundle, SETTINGS.limits)
    assert any(spec.graph.startswith("reduce.") for spec in specs)
    for spec in specs:
        assert build_engine(library, spec, bundle, ("sm75",)) is not None


def test_a_float32_bundle_is_not_rounded_for_turing_in_silence(bundle: Bundle) -> None:
    precise = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, precision="float32")
    )
    settings = dataclasses.replace(SETTINGS, compute_capabilities=("sm75",))
    with pytest.raises(
        UsageError, match=r"Turing \(sm75\); build the bundle with --precision fp16"
    ):
        build_engines(precise, settings)


def test_only_float32_products_are_rounded_for_turing(bundle: Bundle) -> None:
    library = open_library("rtx")
    trt = library.module

    def parsed(graph: str) -> Any:
        network = trt.Builder(library.logger).create_network(library.network_flags())
        assert trt.OnnxParser(network, library.logger).parse_from_file(str(bundle.path(graph)))
        return network

    reducer = next(name for name in bundle.manifest.files if name.startswith("reduce.vision"))
    network = parsed(reducer)
    before = [(network.get_output(i).name, network.get_output(i).dtype) for i in range(2)]
    # Scores of patches, those that leave by those that take in, and their weighted means.
    assert multiply_in_half(trt, network) == 3
    assert multiply_in_half(trt, network) == 0, "none is left"
    assert [(network.get_output(i).name, network.get_output(i).dtype) for i in range(2)] == before
    for graph in (bundle.manifest.vision[0].graph, *bundle.manifest.lm_head):
        assert multiply_in_half(trt, parsed(graph)) == 0


def test_the_real_runtime_reads_the_file_up_to_the_driver(bundle: Bundle) -> None:
    """As far as possible without a GPU: the next step of TensorRT needs a driver."""
    with contextlib.suppress(LvlmError):
        pytest.skip(f"here is a GPU: {cuda_driver.open_driver().name}")
    backend = TensorRtBackend(CudaDriver(FakeDriver()))
    with pytest.raises(LvlmError) as caught:
        backend.load(bundle, bundle.manifest.vision[0].graph)
    line = str(caught.value)
    assert re.match(r"TensorRT-RTX \S+ does not load \S+/vision\.0\.engine: .*cudaError 35", line)
    assert line.endswith("; update the NVIDIA driver")


def test_tensorrt_needs_the_gpu_named(bundle: Bundle) -> None:
    result = typed("engines", bundle.directory, "--target", "trt")
    assert result.exit_code == 2
    assert "--compute-capability sm87" in result.stderr


def test_tensorrt_asks_the_driver_which_gpu_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaDriver(FakeDriver())
    monkeypatch.setattr(cuda_driver, "open_driver", lambda: gpu)
    assert compute_capabilities("trt", ()) == ("sm89",)
    assert compute_capabilities("trt", ("sm89",)) == ("sm89",)
    with pytest.raises(UsageError, match="GPU of this machine, sm89, and not for sm87"):
        compute_capabilities("trt", ("sm87",))


@pytest.mark.slow
@pytest.mark.usefixtures("heads_of_16")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("siglip-qwen2", "illava"), ("onevision", "illava")),
        *(("siglip-qwen2", name) for name in ("local", "anchors", "checkerboard")),
        *(("onevision", name) for name in ("local", "anchors", "checkerboard")),
    ],
)
def test_other_families_build_at_four_budgets(tmp_path: Path, name: str, method: str) -> None:
    options: dict[str, object] = {"method": method}
    if name == "onevision":
        checkpoint = tiny.onevision(tmp_path / "checkpoint")
        options["image_size"] = (100, 140)
    else:
        checkpoint = tiny.llava(tmp_path / "checkpoint", tower="siglip", text="qwen2")
    ratios = (0.6, 0.5, 0.33)
    built = build_tiny(checkpoint, tmp_path / "bundle", *ratios, target="rtx", **options).directory
    settings = dataclasses.replace(SETTINGS, limits=Limits(64, 32, 2))
    result = build_engines(Bundle.open(built), settings)
    graphs = {path.name for path in built.glob("*.onnx")}
    assert set(result.record.engines) == graphs


@pytest.mark.slow
def test_the_demo_builds(tmp_path: Path) -> None:
    words = [word for ratio in ("0.25", "0.33", "0.5") for word in ("--ratio", ratio)]
    result = typed("build", *words, "--target", "rtx", "--no-verify", "-o", tmp_path / "demo")
    assert result.exit_code == 0, result.stderr
    record = read_record(tmp_path / "demo", "rtx")
    assert record is not None
    assert set(record.engines) == {path.name for path in (tmp_path / "demo").glob("*.onnx")}


@pytest.mark.slow
@pytest.mark.usefixtures("heads_of_16")
def test_weights_are_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four budgets and decoding: at most 1.08 of the weights, on layers of a real model's size."""
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4}
    monkeypatch.setattr(tiny, "TEXT", {**tiny.TEXT, **wide, **heads})
    checkpoint = tiny.llava(tmp_path / "checkpoint", dtype=torch.float16)
    ratios = (0.6, 0.5, 0.33)
    built = Bundle.open(
        build_tiny(checkpoint, tmp_path / "bundle", *ratios, target="rtx").directory
    )
    specs = plan_engines(built, Limits(512, 512, 1))
    spec = max(specs, key=lambda each: each.weights_bytes)
    assert spec.weights_bytes > 100_000_000
    assert len(spec.profiles) == 5
    engine = build_engine(open_library("rtx"), spec, built, RTX_COMPUTE_CAPABILITIES)
    print(f"{spec.graph}: weights {spec.weights_bytes}, engine {engine.nbytes}")
    assert engine.nbytes <= 1.08 * spec.weights_bytes
