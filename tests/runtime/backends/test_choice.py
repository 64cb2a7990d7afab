"""Which backend runs a bundle where no option names one."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from command_line import error_line, typed
from lvlm_runtime.backends.choice import choose_backend, why_no_engines
from lvlm_runtime.engines.record import RECORD, directory_of
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt import cuda as cuda_driver


@pytest.fixture
def with_engines(tmp_path: Path) -> Path:
    directory = directory_of(tmp_path, "rtx")
    directory.mkdir(parents=True)
    (directory / RECORD).write_text("{}", encoding="utf-8")
    return tmp_path


def no_driver() -> None:
    raise LvlmError("there is no NVIDIA driver here")


def test_what_is_asked_for_is_taken(with_engines: Path) -> None:
    assert choose_backend(with_engines, "onnxruntime", "auto") == "onnxruntime"
    assert choose_backend(with_engines, "tensorrt", "auto") == "tensorrt"


def test_tensorrt_needs_engines_library_and_gpu(
    with_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "open_driver", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorrt_rtx")
    assert choose_backend(with_engines, "auto", "auto") == "tensorrt"
    assert choose_backend(with_engines, "auto", "cuda") == "tensorrt"
    assert choose_backend(with_engines, "auto", "cpu") == "onnxruntime"
    assert why_no_engines(tmp_path / "other", "auto") == "the bundle has no engines"
    monkeypatch.setattr(cuda_driver, "open_driver", no_driver)
    assert why_no_engines(with_engines, "auto") == "there is no NVIDIA driver here"
    assert choose_backend(with_engines, "auto", "auto") == "onnxruntime"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_no_engines(with_engines, "auto") == "tensorrt_rtx is not installed"


def test_run_says_what_is_missing(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm_runtime.backends.tensorrt.open_driver", no_driver)
    result = typed("run", demo_bundle, "Is there a circle?", "--backend", "tensorrt")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: there is no NVIDIA driver here"
    wrong = typed("run", demo_bundle, "x", "--backend", "tensorrt", "--device", "cpu")
    assert wrong.exit_code == 2
    assert wrong.stderr.splitlines()[-1] == (
        "error: tensorrt has no device 'cpu'; known: auto, cuda"
    )


def test_run_says_what_ran(demo_bundle: Path) -> None:
    words = ("run", demo_bundle, "Is there a circle?", "--device", "cpu", "--max-new-tokens", "1")
    assert typed(*words).stderr.splitlines()[-1].endswith("; onnxruntime on cpu")


def test_list_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "open_driver", no_driver)
    monkeypatch.setenv("COLUMNS", "200")
    shown = typed("list", "backends").stdout
    assert "there is no NVIDIA driver here" in shown
    assert "lvlm_runtime.backends.tensorrt" in shown


@pytest.mark.parametrize("left", [None, types.ModuleType("onnxruntime")], ids=["none", "remains"])
@pytest.mark.parametrize("words", [("run", "a question"), ("verify", "--golden"), ("profile",)])
def test_commands_without_onnx_runtime_end_with_a_line(
    words: tuple[str, ...],
    left: types.ModuleType | None,
    demo_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    monkeypatch.delitem(sys.modules, "lvlm_runtime.backends.onnxruntime", raising=False)
    command, *rest = words
    result = typed(command, demo_bundle, *rest, "--backend", "onnxruntime")
    line = error_line(result, 1)
    assert "ONNX Runtime is not installed (" in line
    assert "pip install 'lvlm-export[cpu]'" in line
    assert "lvlm-export engines BUNDLE --target trt" in line
