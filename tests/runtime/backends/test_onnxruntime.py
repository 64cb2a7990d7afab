"""What ONNX Runtime's backend says where it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lvlm_runtime.backends import onnxruntime as backend
from lvlm_runtime.backends import open_backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.errors import LvlmError

# A ModelProto of IR version 10 and opset 99 with an empty graph named "g".
OPSET_99 = b"\x08\x0a" + b"\x42\x02\x10\x63" + b"\x3a\x03\x12\x01g"


def test_a_graph_of_a_newer_opset_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, None)  # type: ignore[arg-type]
    bundle._graphs["new.onnx"] = OPSET_99
    message = (
        rf"new\.onnx speaks opset 99 and ONNX Runtime {onnxruntime.__version__} takes \d+ at most;"
        r" pip install -U onnxruntime .* --dialect decomposed$"
    )
    with pytest.raises(LvlmError, match=message):
        open_backend("onnxruntime", "cpu", 1).load(bundle, "new.onnx")


def test_what_does_not_load_is_one_line_and_nothing_beside_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle(tmp_path, None)  # type: ignore[arg-type]
    bundle._graphs["empty.onnx"] = OPSET_99.replace(b"\x63", b"\x15")
    with pytest.raises(LvlmError, match=r"empty\.onnx does not load in ONNX Runtime: .") as error:
        open_backend("onnxruntime", "cpu", 1).load(bundle, "empty.onnx")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_build_without_cuda_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert backend.open_backend("auto", None).device == "cpu"
    message = r"built without CUDA \(pip uninstall onnxruntime, then .*'lvlm-export\[cuda\]'"
    with pytest.raises(LvlmError, match=message):
        backend.open_backend("cuda", None)


def test_what_was_fetched_outlives_its_value_and_what_is_written_later() -> None:
    cpu = backend.open_backend("cpu", None)
    rows = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    value = cpu.put(rows)
    fetched = {"value": cpu.fetch(value), "view": cpu.fetch(cpu.rows(value, 1, 3))}
    rows[:] = -1  # as a cache that the next step writes, or memory that is given to someone else
    del value
    np.testing.assert_array_equal(fetched["value"].ravel(), np.arange(6))
    np.testing.assert_array_equal(fetched["view"].ravel(), np.arange(2, 6))


@pytest.mark.parametrize(("exact", "whole"), [(False, True), (True, True), (False, False)])
def test_activations_are_rounded_where_products_stay_whole_and_nobody_compares(
    exact: bool, whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend, "_multiplies_whole", lambda: whole)
    monkeypatch.setattr(backend, "multiply_in_integers", lambda data, path: data + b"!")
    bundle = Bundle(tmp_path, None)  # type: ignore[arg-type]
    bundle._graphs.update(dict.fromkeys(("vision.0.onnx", "decoder.0.onnx"), b"graph"))
    opened = backend.OrtBackend("cpu", 1, exact)
    given = opened._lowered(bundle, "decoder.0.onnx")
    assert given == (b"graph" if exact or not whole else b"graph!")
    # In the tower ranks decide which tokens stay, and they move.
    assert opened._lowered(bundle, "vision.0.onnx") == b"graph"
