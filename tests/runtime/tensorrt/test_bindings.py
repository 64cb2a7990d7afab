"""Which profile a request takes, and the error where none fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt.bindings import Binding, choose_profile, read_bindings

FP16 = np.dtype(np.float16)
# Two budgets and decoding, as engine_plan makes them: rows of the prompt, static caches.
ROWS = ((1, 160, 700), (1, 90, 400), (1, 1, 16))


def inputs(*rows: tuple[int, int, int]) -> tuple[Binding, ...]:
    spans = tuple(tuple((1, size, 64) for size in span) for span in rows)
    cache = ((1, 2, 512, 16),) * 3
    return (
        Binding("hidden", True, FP16, (1, -1, 64), spans),  # type: ignore[arg-type]
        Binding("past_key.0", True, FP16, (1, 2, 512, 16), (cache,) * len(rows)),
        Binding("logits", False, FP16, (1, 99), ()),
    )


@pytest.mark.parametrize(
    ("rows", "profile"), [(160, 0), (90, 1), (100, 1), (400, 0), (401, 0), (1, 2), (3, 2), (60, 1)]
)
def test_the_profile_with_the_nearest_best_shape_is_taken(rows: int, profile: int) -> None:
    shapes = {"hidden": (1, rows, 64), "past_key.0": (1, 2, 512, 16)}
    assert choose_profile(inputs(*ROWS), shapes, "decoder.0") == profile


def test_an_empty_past_prefers_the_prompts_profile() -> None:
    past = (
        ((1, 0, 2, 16), (1, 0, 2, 16), (1, 1, 2, 16)),
        ((1, 0, 2, 16), (1, 90, 2, 16), (1, 511, 2, 16)),
    )
    rows = (((1, 1, 64), (1, 90, 64), (1, 400, 64)), ((1, 1, 64), (1, 1, 64), (1, 16, 64)))
    bindings = (
        Binding("hidden", True, FP16, (1, -1, 64), rows),
        Binding("past_key.0", True, FP16, (1, -1, 2, 16), past),
    )
    prompt = {"hidden": (1, 12, 64), "past_key.0": (1, 0, 2, 16)}
    step = {"hidden": (1, 1, 64), "past_key.0": (1, 12, 2, 16)}
    assert choose_profile(bindings, prompt, "decoder.0") == 0
    assert choose_profile(bindings, step, "decoder.0") == 1


def test_what_no_profile_takes_is_named() -> None:
    shapes = {"hidden": (1, 701, 64), "past_key.0": (1, 2, 512, 16)}
    with pytest.raises(LvlmError) as caught:
        choose_profile(inputs(*ROWS), shapes, "decoder.0")
    assert str(caught.value) == (
        "decoder.0, hidden: 1x701x64 is outside of what the engine takes (1x1x64 to 1x16x64;"
        " 1x1x64 to 1x400x64; 1x1x64 to 1x700x64); build engines for larger requests: lvlm-export"
        " engines with --text-tokens, --answer-tokens or --images"
    )
    shapes["past_key.0"] = (1, 2, 511, 16)
    shapes["hidden"] = (1, 7, 64)
    with pytest.raises(LvlmError, match=r"past_key\.0: 1x2x511x16 is outside .*\(1x2x512x16\)"):
        choose_profile(inputs(*ROWS), shapes, "decoder.0")


def test_shapes_that_fit_one_by_one_and_not_together() -> None:
    spans = (((1,), (2,), (4,)), ((5,), (6,), (8,)))
    bindings = (
        Binding("text", True, FP16, (-1,), spans),
        Binding("visual", True, FP16, (-1,), spans),
    )
    with pytest.raises(LvlmError, match="no profile of the engine takes text 2, visual 6 together"):
        choose_profile(bindings, {"text": (2,), "visual": (6,)}, "assemble")


class Engine:
    """One input, one output."""

    num_io_tensors = 2
    num_optimization_profiles = 1

    def get_tensor_name(self, index: int) -> str:
        return ("hidden", "out")[index]

    def get_tensor_dtype(self, name: str) -> str:
        return "HALF"

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "hidden" else "OUTPUT"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 4), (2, 4), (3, 4)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4)


def nptype(kind: str) -> Any:
    if kind in ("BF16", "FP8"):
        raise TypeError(kind)
    return np.float16


TRT = SimpleNamespace(
    nptype=nptype,
    DataType=SimpleNamespace(BF16="BF16"),
    TensorLocation=SimpleNamespace(DEVICE="DEVICE"),
    TensorIOMode=SimpleNamespace(INPUT="INPUT"),
)


def test_bindings_are_read_from_the_engine() -> None:
    """Also from TensorRT 10.3, which does not report aliases."""
    assert read_bindings(TRT, Engine(), "vision.0") == (
        Binding("hidden", True, FP16, (-1, 4), (((1, 4), (2, 4), (3, 4)),)),
        Binding("out", False, FP16, (-1, 4), ()),
    )


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

    class Brain(Engine):
        def get_tensor_dtype(self, name: str) -> str:
            return "BF16"

    found = read_bindings(TRT, Brain(), "vision.0")
    assert {binding.dtype for binding in found} == {np.dtype(ml_dtypes.bfloat16)}


def test_what_cannot_be_bound_is_named() -> None:
    class Eighth(Engine):
        def get_tensor_dtype(self, name: str) -> str:
            return "FP8"

    with pytest.raises(LvlmError, match=r"vision\.0, hidden: FP8 has no numpy type"):
        read_bindings(TRT, Eighth(), "vision.0")

    class Host(Engine):
        def get_tensor_location(self, name: str) -> str:
            return "HOST"

    with pytest.raises(LvlmError, match=r"vision\.0, hidden is a shape tensor on the host"):
        read_bindings(TRT, Host(), "vision.0")
