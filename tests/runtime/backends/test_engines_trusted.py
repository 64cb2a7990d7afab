"""Engines are machine code: what is loaded is what the record says, and whose the record is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fake_cuda import FakeDriver
from fake_tensorrt import library, write_engines
from keys import KEY, LINE
from lvlm_runtime.backends import tensorrt
from lvlm_runtime.backends.tensorrt import TensorRtBackend
from lvlm_runtime.bundle.bundle import MANIFEST, Bundle
from lvlm_runtime.bundle.signature import read_secret_key, sign_file
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.record import directory_of, read_record, record_path, write_record
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt.cuda import CudaDriver
from lvlm_runtime.tensorrt.kernel_cache import FILE, KernelCache

HEAD = "lm_head.onnx"


@pytest.fixture
def built(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo bundle beside faked engines, which a backend would load."""
    driver = FakeDriver()
    monkeypatch.setattr(tensorrt, "open_driver", lambda: CudaDriver(driver))
    monkeypatch.setattr(tensorrt, "open_library", lambda target: library(driver, target))
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    write_engines(Bundle.open(folder), Limits(48, 24, 2))
    return folder


def backend() -> TensorRtBackend:
    return tensorrt.open_backend("cuda", None)


@pytest.mark.parametrize("name", ["../../lm_head.engine", "/lm_head.engine", "lm_head.so", ""])
def test_an_engine_lies_beside_its_record(built: Path, name: str) -> None:
    record = read_record(built, "rtx")
    assert record is not None
    engine = dataclasses.replace(record.engines[HEAD], file=name)
    write_record(built, dataclasses.replace(record, engines={HEAD: engine}))
    with pytest.raises(
        LvlmError, match=r"lm_head\.onnx\.file: expected a plain name, \*\.engine, got"
    ):
        backend().load(Bundle.open(built), HEAD)


def test_a_record_is_of_its_own_folder(built: Path) -> None:
    rtx, trt = directory_of(built, "rtx"), directory_of(built, "trt")
    rtx.rename(trt)
    with pytest.raises(
        LvlmError, match=r"record\.json, target: expected trt, got 'rtx'; build them"
    ):
        read_record(built, "trt")


def test_a_changed_engine_is_not_loaded(built: Path) -> None:
    """Of the right size, and with a stamp that was written for the engine before it."""
    backend().load(Bundle.open(built), HEAD)
    engine = directory_of(built, "rtx") / "lm_head.engine"
    engine.write_text(
        engine.read_text(encoding="utf-8").replace("fixed", "fiXed"), encoding="utf-8"
    )
    with pytest.raises(
        LvlmError, match=r"lm_head\.engine is damaged: its SHA-256 is not the record"
    ):
        backend().load(Bundle.open(built), HEAD)


def test_under_a_signature_engines_are_signed_and_kernels_are_not_read(
    built: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra `sign`")
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    key = read_secret_key(tmp_path / "key", str)
    sign_file(built / MANIFEST, key, "fleet 7")
    bundle = Bundle.open(built, require_signature=LINE)
    with pytest.raises(
        LvlmError, match=r"record\.json is not signed: there is no record\.json\.min"
    ):
        backend().load(bundle, HEAD)
    sign_file(record_path(built, "rtx"), key, "fleet 7")
    signed = backend()
    signed.load(bundle, HEAD)
    assert signed._opened is not None
    assert signed._opened.kernels is None
    plain = backend()
    plain.load(Bundle.open(built), HEAD)
    assert plain._opened is not None
    assert isinstance(plain._opened.kernels, KernelCache)
    assert FILE == "kernels.cache"
    content = json.loads(record_path(built, "rtx").read_text(encoding="utf-8"))
    record_path(built, "rtx").write_text(json.dumps({**content, "device": "x"}), encoding="utf-8")
    with pytest.raises(
        LvlmError, match=r"record\.json is not what the owner of key 731B793FB8FB1261"
    ):
        backend().load(bundle, HEAD)
