"""The TensorRT backend on a faked GPU: whole answers, in both dialects, against ONNX Runtime."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvlm_runtime.backends.tensorrt as tensorrt
import tiny
from fake_cuda import FakeDriver
from fake_tensorrt import FakeConfig, FakeContext, library, write_engines
from helpers import build_tiny
from lvlm_runtime.backends.clock import clock_of
from lvlm_runtime.backends.tensorrt import TensorRtBackend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import HEAD_MAJOR
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.kv_cache import HeadMajorGroup
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.record import directory_of, read_record, write_record
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.reader import read_model
from lvlm_runtime.session import Session
from lvlm_runtime.tensorrt.cuda import CudaDriver
from lvlm_runtime.tensorrt.kernel_cache import FILE, KernelCache

LIMITS = Limits(48, 24, 2)


@pytest.fixture(scope="module")
def head_major(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle beside faked engines."""
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    shutil.copytree(demo_bundle, folder)
    bundle = Bundle.open(folder)
    write_engines(bundle, LIMITS)
    return bundle


@pytest.fixture(scope="module")
def sequence_major(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small LLaVA in the decomposed dialect, beside faked engines."""
    folder = tmp_path_factory.mktemp("tensorrt")
    options = {"target": "cuda", "precision": "fp32", "dialect": "decomposed"}
    checkpoint = tiny.llava(folder / "checkpoint")
    bundle = Bundle.open(build_tiny(checkpoint, folder / "bundle", 0.5, **options).directory)
    write_engines(bundle, LIMITS)
    return bundle


@pytest.fixture(params=["head_major", "sequence_major"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def backend(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
    monkeypatch.setattr(tensorrt, "open_library", lambda target: library(driver, target))
    return TensorRtBackend(CudaDriver(driver))


def answer(chain: Chain, ratio: float | None, text: int, steps: int) -> list[Any]:
    """Logits of a prompt and of some steps after it; without a picture for None."""
    visual, layout = None, None
    runs = [list(range(5, 5 + text))]
    recorder = Recorder()
    if ratio is not None:
        budget = chain.bundle.budget(ratio)
        layout = budget.layouts[0]
        first = read_model(chain.bundle.path(chain.manifest.vision[0].graph)).graph
        size = first.inputs[0].dims[-2:]
        pixels = np.random.default_rng(1).normal(size=(1, 3, *size)).astype(np.float32)
        visual = chain.encode(pixels, budget, layout, recorder)
        runs.append([3, 4])
    state, logits = chain.prefill(runs, visual, layout, steps + 1, recorder)
    found = [logits]
    for _ in range(steps):
        found.append(chain.step(state, int(found[-1].argmax()), recorder))
    return found


def test_answers_are_those_of_onnxruntime(bundle: Bundle, backend: TensorRtBackend) -> None:
    """Requests one after another reuse memory; each must be right."""
    fake = Chain(bundle, backend)
    cpu = Session.load(bundle, "onnxruntime", "cpu", 1).chain
    for ratio, text, steps in ((0.5, 7, 6), (1.0, 12, 5), (None, 20, 5), (0.5, 7, 6)):
        pairs = zip(answer(fake, ratio, text, steps), answer(cpu, ratio, text, steps), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_several_rows_behind_a_cache_are_verified_in_one_call(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    """Within the decode engines' range; rows that are taken back are written over."""
    fake = Chain(bundle, backend)
    cpu = Session.load(bundle, "onnxruntime", "cpu", 1).chain
    found = []
    for chain in (fake, cpu):
        state, _ = chain.prefill([[5, 6, 7]], None, None, 12, Recorder())
        chain.extend(state, [9, 9, 9, 9], Recorder())
        state.roll_back(4, chain.backend)
        found.append(chain.extend(state, [4, 8, 6], Recorder(), every_row=True))
    assert found[0].shape == (3, bundle.manifest.text.vocab_size)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ratio", "chunk"), [(0.5, None), (1.0, 9)])
def test_a_conversation_on_engines_is_that_of_onnxruntime(
    bundle: Bundle, backend: TensorRtBackend, ratio: float, chunk: int | None
) -> None:
    """Turns behind a cache, a picture in the first and in a later one, within the engines' limits."""
    cpu = Session.load(bundle, "onnxruntime", "cpu", 1)
    fake = Session(bundle, Chain(bundle, backend), cpu.encoder, cpu.generation)
    ours, theirs = fake.chat(prefill_chunk=chunk), cpu.chat()
    pictures = [np.full((40, 40, 3), shade, np.uint8) for shade in (40, 200)]
    for images in ([pictures[0]], [pictures[1]]):
        got = ours.ask("a b", images, ratio, max_new_tokens=3)
        wanted = theirs.ask("a b", images, ratio, max_new_tokens=3)
        assert (got.token_ids, got.reused_tokens) == (wanted.token_ids, wanted.reused_tokens)
    assert got.reused_tokens > bundle.budget(ratio).layouts[0].tokens_in
    with pytest.raises(LvlmError, match="it does not fit"):
        ours.ask("a b", [pictures[0]] * 2, ratio)
    for chat in (ours, theirs):
        chat.reset()
    assert ours.ask("a", max_new_tokens=1).token_ids == theirs.ask("a", max_new_tokens=1).token_ids


def test_decoding_is_captured_where_only_values_change(
    bundle: Bundle, backend: TensorRtBackend, driver: FakeDriver
) -> None:
    chain = Chain(bundle, backend)
    answer(chain, 0.5, 7, 6)
    in_place = chain.manifest.kv_layout == HEAD_MAJOR
    for stage in chain.manifest.decoder:
        assert backend.runners[stage.graph].policy.captured == (1 if in_place else 0)
    # Step 1 runs, step 2 runs and is captured, the other four are replayed.
    # Rows of 128 bytes begin between the addresses that TensorRT takes; all are copied into place,
    # also those that would fit, so that a step takes the memory that the step before took.
    assert ("cuMemcpyDtoDAsync" in driver.calls) is not in_place
    launched = driver.calls.count("cuGraphLaunch")
    heads = len(chain.manifest.lm_head)
    # Where the last row of a prompt lies where that of a step will, the head is captured a step earlier.
    earlier = 0 if in_place else heads
    assert launched == 4 * (heads + (len(chain.manifest.decoder) if in_place else 0)) + earlier


def test_steady_state_takes_no_memory(
    bundle: Bundle, backend: TensorRtBackend, driver: FakeDriver
) -> None:
    chain = Chain(bundle, backend)
    answer(chain, 0.5, 7, 6)
    before = backend.arena.allocations, backend.arena.held_bytes
    del driver.calls[:]
    answer(chain, 0.5, 7, 6)
    assert (backend.arena.allocations, backend.arena.held_bytes) == before
    assert not {"cuMemAlloc", "cuMemAllocHost", "cuMemFree"} & set(driver.calls)


def test_a_step_waits_once_and_only_for_its_logits(
    bundle: Bundle, backend: TensorRtBackend, driver: FakeDriver
) -> None:
    chain = Chain(bundle, backend)
    state, _ = chain.prefill([[5, 6, 7]], None, None, 8, Recorder())
    del driver.calls[:]
    chain.step(state, 5, Recorder())
    assert driver.calls.count("cuStreamSynchronize") == len(chain.manifest.lm_head)
    assert driver.calls.count("cuMemcpyDtoHAsync") == len(chain.manifest.lm_head)


def test_caches_have_the_rows_that_the_engines_have(
    head_major: Bundle, backend: TensorRtBackend
) -> None:
    chain = Chain(head_major, backend)
    state, _ = chain.prefill([[5, 6, 7]], None, None, 4, Recorder())
    record = read_record(head_major.directory, "rtx")
    assert record is not None
    for stage, group in zip(chain.manifest.decoder, state.groups, strict=True):
        assert isinstance(group, HeadMajorGroup)
        assert group.capacity == record.engines[stage.graph].capacity
    with pytest.raises(LvlmError, match=r"needs 99\d\d rows of cache and the engine of decoder\.0"):
        chain.prefill([[5, 6, 7]], None, None, 9900, Recorder())


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(
    sequence_major: Bundle, backend: TensorRtBackend
) -> None:
    chain = Chain(sequence_major, backend)
    wanted = r"needs 1003 rows of cache and the engine of decoder\.0 has \d+; .*--text-tokens"
    with pytest.raises(LvlmError, match=wanted):
        chain.prefill([[5] * 999], None, None, 4, Recorder())


def test_what_tensorrt_says_is_one_line(
    sequence_major: Bundle, backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(sequence_major, backend)
    errors = backend.runners["decoder.0.onnx"]._device.library.logger.errors
    errors.append("something from before")

    def fail(context: FakeContext, stream: int) -> bool:
        errors.append("out of\n  luck")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "execute_async_v3", fail)
        with pytest.raises(
            LvlmError, match=r"^TensorRT-RTX 1\.7\.0 cannot run decoder\.0: out of luck$"
        ):
            chain.prefill([[5]], None, None, 4, Recorder())
    monkeypatch.setattr(FakeContext, "set_tensor_address", lambda self, name, address: False)
    fresh = Chain(sequence_major, TensorRtBackend(CudaDriver(FakeDriver())))
    with pytest.raises(LvlmError, match=r"decoder\.0, hidden: its address is refused by TensorRT"):
        fresh.prefill([[5]], None, None, 4, Recorder())


def test_wrong_types_and_shapes_name_the_binding(
    sequence_major: Bundle, backend: TensorRtBackend
) -> None:
    Chain(sequence_major, backend)
    runner = backend.runners["lm_head.onnx"]
    width = sequence_major.manifest.text.hidden_size
    half = backend.zeros((1, 1, width), np.dtype(np.float16))
    with pytest.raises(LvlmError, match="lm_head, hidden: is float16 and the engine takes float32"):
        runner({"hidden": half})
    hidden = backend.zeros((1, 1, width), np.dtype(np.float32))
    with pytest.raises(LvlmError, match=r"lm_head, logits: the engine gives float32 \[1, \d+\]"):
        runner({"hidden": hidden}, {"logits": hidden})


def test_a_cache_that_is_not_bound_in_place_is_refused(
    head_major: Bundle, backend: TensorRtBackend
) -> None:
    chain = Chain(head_major, backend)
    stage = chain.manifest.decoder[0]
    runner = backend.runners[stage.graph]
    state, _ = chain.prefill([[5, 6, 7]], None, None, 4, Recorder())
    feeds, _ = state.groups[0].bind(1, backend)
    hidden = backend.zeros((1, 1, chain.manifest.text.hidden_size), np.dtype(np.float32))
    positions = backend.put(np.array([[3]], np.int64))
    with pytest.raises(LvlmError, match=r"the engine updates past_\w+\.0 in place"):
        runner({**feeds, "hidden": hidden, "position_ids": positions})


def test_compiled_kernels_are_kept_beside_the_engines(
    sequence_major: Bundle, driver: FakeDriver, backend: TensorRtBackend
) -> None:
    path = directory_of(sequence_major.directory, "rtx") / FILE
    path.unlink(missing_ok=True)
    kernels = KernelCache(path)
    for _ in range(2):
        kernels.attach(FakeConfig())
    assert not path.exists()
    del kernels
    assert path.read_bytes() == b"kernel kernel "
    again = KernelCache(path)
    again.attach(FakeConfig())
    del again
    assert path.read_bytes() == b"kernel kernel kernel "
    chain = Chain(sequence_major, backend)
    chain.prefill([[5]], None, None, 2, Recorder())
    del chain, backend
    gc.collect()
    unwritable = KernelCache(sequence_major.directory / "nowhere" / FILE)
    unwritable.attach(FakeConfig())
    del unwritable
    assert not (sequence_major.directory / "nowhere").exists()


def test_another_thread_gets_the_context_too(
    sequence_major: Bundle, backend: TensorRtBackend, driver: FakeDriver
) -> None:
    chain = Chain(sequence_major, backend)
    before = driver.calls.count("cuCtxSetCurrent")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(chain.prefill, [[5]], None, None, 2, Recorder()).result()
    assert driver.calls.count("cuCtxSetCurrent") == before + 1


def test_times_are_those_of_the_device(backend: TensorRtBackend) -> None:
    clock = clock_of(backend)
    assert clock.name == "CUDA events"
    assert clock.stop(clock.start()) == 0.25


def test_engines_that_do_not_fit_are_refused(
    sequence_major: Bundle, driver: FakeDriver, backend: TensorRtBackend, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sequence_major.directory, folder)
    copy, graph = Bundle.open(folder), sequence_major.manifest.lm_head[0]
    record = read_record(folder, "rtx")
    assert record is not None
    write_record(folder, dataclasses.replace(record, compute_capabilities=("sm120",)))
    with pytest.raises(LvlmError, match=r"built for sm120 and this GPU is sm89; build them: "):
        TensorRtBackend(CudaDriver(driver)).load(copy, graph)
    write_record(folder, record)
    damaged = directory_of(folder, "rtx") / "lm_head.engine"
    damaged.write_bytes(b"?" * record.engines["lm_head.onnx"].size_bytes)
    with pytest.raises(
        LvlmError,
        match=r"lm_head\.engine is damaged: its SHA-256 is not the record's; build it again: lvlm-export",
    ):
        TensorRtBackend(CudaDriver(driver)).load(copy, graph)
    damaged.unlink()
    with pytest.raises(LvlmError, match=r"lm_head\.engine cannot be read .*lvlm-export engines"):
        TensorRtBackend(CudaDriver(driver)).load(copy, graph)
    shutil.rmtree(folder / "engines")
    with pytest.raises(LvlmError, match=r"has no engines; build them: lvlm-export engines"):
        TensorRtBackend(CudaDriver(driver)).load(copy, graph)


def test_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match="tensorrt has no device 'cpu'; known: auto, cuda"):
        tensorrt.open_backend("cpu", None)
