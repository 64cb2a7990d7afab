"""What a target's rewrites make of the decoder's graph, and that the chain stays the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

import tiny
from helpers import build_tiny, tiny_options
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.passes import rewrites
from lvlm_export.plan.plan import TARGETS, make_plan
from lvlm_runtime.session import Session

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}


@pytest.fixture
def head_size_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny text models with 4 heads of 16 (GroupQueryAttention refuses their usual 12)."""
    monkeypatch.setattr(tiny, "TEXT", {**tiny.TEXT, "hidden_size": 64})


def operators(bundle: Path) -> Counter[str]:
    """Node types of the decoder's subgraphs."""
    models = [onnx.load(path, load_external_data=False) for path in bundle.glob("decoder.*.onnx")]
    return Counter(node.op_type for model in models for node in model.graph.node)


def check(directory: Path, ratios: tuple[float, ...] = (0.5,), **options: Any) -> Counter[str]:
    """Build unless it is built, compare with PyTorch; the operators of the decoder."""
    checkpoint = Checkpoint.open(directory / "checkpoint")
    result = build_tiny(checkpoint.directory, directory / "bundle", *ratios, **options)
    plan = make_plan(checkpoint, tiny_options(*ratios, **options))
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 2, seed=3)
    report = verify(session, checkpoint, plan, samples, 8, lambda _step: None)
    assert report.passed, report.failure()
    return operators(result.directory)


@pytest.mark.usefixtures("head_size_16")
@pytest.mark.parametrize(
    "text",
    ["qwen2", *(pytest.param(text, marks=pytest.mark.slow) for text in ("llama", "mistral"))],
)
def test_cpu_graphs_are_fused(tmp_path: Path, text: str) -> None:
    tiny.llava(tmp_path / "checkpoint", text=text)
    operators = check(tmp_path)
    layers = tiny.TEXT["num_hidden_layers"]
    assert operators["GroupQueryAttention"] == layers
    assert operators["RotaryEmbedding"] == operators["RMSNormalization"] == 2 * layers
    for fused in ("Attention", "TensorScatter", "ReduceMean", "Slice", "Neg"):
        assert operators[fused] == 0, fused


def test_head_size_that_does_not_fit_keeps_the_standard_node(tiny_llava: Path) -> None:
    operators = check(tiny_llava, (0.5, 0.33))
    assert operators["GroupQueryAttention"] == 0
    assert operators["Attention"] == tiny.TEXT["num_hidden_layers"]


@pytest.mark.slow
@pytest.mark.usefixtures("head_size_16")
def test_rotary_of_another_form_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Yarn scales the cosines: nothing to fuse, and the heads are turned back into rows."""
    monkeypatch.setattr(
        tiny, "TEXT", {**tiny.TEXT, "rope_parameters": YARN, "max_position_embeddings": 8192}
    )
    tiny.llava(tmp_path / "checkpoint")
    operators = check(tmp_path)
    assert operators["RotaryEmbedding"] == 0
    assert operators["GroupQueryAttention"] == tiny.TEXT["num_hidden_layers"]


@pytest.mark.slow
@pytest.mark.usefixtures("head_size_16")
def test_other_targets_stay_standard(tmp_path: Path) -> None:
    checkpoint = tiny.llava(tmp_path / "checkpoint")
    bundle = build_tiny(checkpoint, tmp_path / "bundle", 0.5, target="cuda").directory
    models = [onnx.load(path, load_external_data=False) for path in bundle.glob("*.onnx")]
    assert {node.domain for model in models for node in model.graph.node} == {""}


def test_every_rewritten_target_exists() -> None:
    assert [name for name in TARGETS if rewrites(name, "opset24")] == ["cpu"]
