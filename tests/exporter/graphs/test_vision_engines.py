"""Engine profiles and gates of subgraphs that take sizes beside tokens, or smaller pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from helpers import build_tiny
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import EngineSpec, plan_engines
from lvlm_runtime.graphs.gate import check_bundle

LIMITS = Limits(text_tokens=60, answer_tokens=20, images=2)
GATES = {"rtx": ("rtx",), "trt": ("trt-10.3", "trt-10.13", "rtx")}


def specs_of(tmp_path: Path, method: str, target: str) -> dict[str, EngineSpec]:
    """Engines of a tiny bundle at ratio 0.5, after every gate of the target."""
    checkpoint = tiny.llava(tmp_path / "checkpoint")
    built = build_tiny(checkpoint, tmp_path / "bundle", 0.5, method=method, target=target)
    bundle = Bundle.open(built.directory)
    for gate in GATES[target]:
        assert check_bundle(bundle, gate) == []
    return {spec.graph: spec for spec in plan_engines(bundle, LIMITS)}


def best(specs: dict[str, EngineSpec], graph: str, name: str) -> dict[str, tuple[int, ...]]:
    """Best shape of an input by budget."""
    profiles = specs[graph].profiles
    return {names: each.shapes[name][1] for each in profiles for names in each.names}


@pytest.mark.slow
@pytest.mark.parametrize("target", GATES)
def test_sizes_follow_the_tokens(tmp_path: Path, target: str) -> None:
    specs = specs_of(tmp_path, "tome", target)
    for index, tokens in enumerate((30, 25, 21), start=1):
        hidden = best(specs, f"vision.{index}.onnx", "hidden")
        assert hidden == {"0.5 image": (1, 1 + tokens, 32), "1 image": (1, 37, 32)}
        sizes = best(specs, f"vision.{index}.onnx", "sizes")
        assert sizes == {name: shape[:2] for name, shape in hidden.items()}
    last = specs["vision.4.onnx"].profiles[0].shapes
    assert set(last) == {"hidden"}, "after the last attention sizes count no more"


@pytest.mark.slow
@pytest.mark.parametrize("target", GATES)
def test_smaller_pictures_have_a_profile(tmp_path: Path, target: str) -> None:
    specs = specs_of(tmp_path, "downsample", target)
    pixels = best(specs, "vision.0.onnx", "pixel_values")
    assert pixels == {"0.5 image": (1, 3, 32, 32), "1 image": (1, 3, 48, 48)}
