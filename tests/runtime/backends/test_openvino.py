"""OpenVINO gives what ONNX Runtime gives, in both layouts of caches, and updates them in place."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from helpers import build_tiny
from lvlm_runtime.backends import Backend, open_backend
from lvlm_runtime.backends import openvino as module
from lvlm_runtime.backends.openvino import OpenVinoBackend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.session import Session

installed = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed: pip install openvino",
)

# What the cpu target's caches are written with depends on the size of a head; 16 gives
# GroupQueryAttention, 12 TensorScatter.
BUILDS = {"packed": {"method": "fastv"}, "in place": {"dialect": "decomposed"}}
HEAD_OF_16 = {**tiny.TEXT, "hidden_size": 64}


@pytest.fixture(scope="module", params=BUILDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TEXT", HEAD_OF_16)
        checkpoint = tiny.llava(directory / "checkpoint")
        built = build_tiny(checkpoint, directory / "bundle", 0.5, **BUILDS[request.param])
    return Bundle.open(built.directory)


def answer(
    bundle: Bundle, backend: Backend
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Logits of a prompt and of six steps behind it, and the caches after them."""
    chain = Chain(bundle, backend)
    state, logits = chain.prefill([[5, 6, 7]], None, None, 8, Recorder())
    found, buffers = [logits], [v for group in state.groups for v in group.buffers.values()]
    found += [chain.step(state, 20 + token, Recorder()) for token in range(6)]
    return found, [chain.backend.fetch(value) for value in buffers]


@installed
@pytest.mark.parametrize(("products", "limit"), [("f32", 1e-5), ("bf16", 5e-2)])
def test_logits_and_caches_are_those_of_onnxruntime(
    bundle: Bundle, products: str, limit: float
) -> None:
    backend = cast("OpenVinoBackend", open_backend("openvino", "cpu", 1, exact=True))
    backend.products = products
    expected = answer(bundle, open_backend("onnxruntime", "cpu", 1, exact=True))
    for ours, theirs in zip(answer(bundle, backend), expected, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert np.linalg.norm(mine - other) <= limit * np.linalg.norm(other) > 0


@installed
@pytest.mark.parametrize(("share", "products"), [(0.5, "bf16"), (0.9, "f32")])
def test_a_cpu_multiplies_in_bfloat16_where_that_is_faster(
    share: float, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    class Cpu(openvino.Core):  # type: ignore[misc]
        def get_property(self, device: str, name: str) -> list[str]:
            return ["BF16", "FP32"]

    monkeypatch.setattr(openvino, "Core", Cpu)
    taken = iter([2.0, 1.0, 2.0, 2.0, 2.0, share, 2.0, 2.0])
    monkeypatch.setattr(module, "_seconds", lambda request, x: next(taken))
    assert module._fastest.__wrapped__(openvino) == products
    assert next(taken, None) is None


@installed
def test_an_answer_about_a_picture_is_onnxruntimes(bundle: Bundle) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    said = [
        Session.load(bundle, name, "cpu", 1, exact=True)
        .generate("What?", [picture], 0.5, max_new_tokens=8, ignore_stop=True)
        .token_ids
        for name in ("openvino", "onnxruntime")
    ]
    assert said[0] == said[1]


@installed
def test_an_output_that_was_bound_is_not_written_when_it_is_bound_no_more(bundle: Bundle) -> None:
    backend = open_backend("openvino", "cpu", 1)
    runner = backend.load(bundle, bundle.manifest.lm_head[0])
    hidden = backend.put(np.ones((1, 1, 64), np.float32))
    target = backend.zeros(
        backend.shape(runner({"hidden": hidden})["logits"]), np.dtype(np.float32)
    )
    assert runner({"hidden": hidden}, {"logits": target}) == {}
    kept = backend.fetch(target)
    other = runner({"hidden": backend.put(-np.ones((1, 1, 64), np.float32))})["logits"]
    np.testing.assert_array_equal(backend.fetch(target), kept)
    np.testing.assert_allclose(backend.fetch(other), -kept, rtol=1e-5)


@installed
def test_a_cache_that_tensor_scatter_writes_is_one_line(tiny_llava: Path) -> None:
    bundle = Bundle.open(tiny_llava / "bundle")
    message = (
        r"decoder\.0\.onnx writes its cache with TensorScatter, which OpenVINO \S+ does not take;"
        r" build the bundle with --dialect decomposed$"
    )
    with pytest.raises(LvlmError, match=message):
        open_backend("openvino", "cpu", 1).load(bundle, "decoder.0.onnx")


@installed
def test_a_graph_that_is_not_the_one_that_was_checked_is_refused(tiny_llava: Path) -> None:
    bundle = Bundle.open(tiny_llava / "bundle")
    bundle._graphs["lm_head.onnx"] += b"!"
    with pytest.raises(LvlmError, match=r"lm_head\.onnx is not what it was; open it again"):
        open_backend("openvino", "cpu", 1).load(bundle, "lm_head.onnx")


@installed
def test_rows_share_the_memory_of_their_buffer() -> None:
    backend = open_backend("openvino", "cpu", 1)
    buffer = backend.zeros((1, 6, 2, 3), np.dtype(np.float32))
    rows = backend.rows(buffer, 2, 6)
    assert np.shares_memory(rows, buffer)  # type: ignore[arg-type]
    assert backend.shape(backend.rows(buffer, 6, 6)) == (1, 0, 2, 3)
    with pytest.raises(ValueError, match=r"rows 3 to 2 are not in a buffer of \[1, 6, 2, 3\]"):
        backend.rows(buffer, 3, 2)


def test_what_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="openvino has no device 'cuda'; known: auto, cpu, gpu"):
        open_backend("openvino", "cuda", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = r"no module of OpenVINO \(.*\); pip install 'lvlm-export\[openvino\]'$"
    with pytest.raises(LvlmError, match=message):
        open_backend("openvino", "auto", None)


@installed
def test_a_device_that_this_machine_has_not_is_one_line() -> None:
    with pytest.raises(
        LvlmError, match="no GPU for OpenVINO here, which has CPU; use --device cpu"
    ):
        open_backend("openvino", "gpu", None)


@installed
def test_what_does_not_load_is_one_line(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, None)  # type: ignore[arg-type]
    (tmp_path / "empty.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(LvlmError, match=r"empty\.onnx does not load in OpenVINO: .") as error:
        open_backend("openvino", "cpu", 1).load(bundle, "empty.onnx")
    assert "\n" not in str(error.value)
