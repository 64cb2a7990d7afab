"""What counting token sizes adds to graphs, and that nothing of it is where no method asks for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.jobs import reducer_job
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan
from lvlm_export.reduction import METHODS, method_entry
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import SIZE_BIAS
from lvlm_runtime.errors import UsageError

# A decoder layer of the tiny text model with plain rotary embeddings, as it was before any method
# counted sizes: what one node more or less would change.
LAYER = Counter(Attention=1, TensorScatter=2, MatMul=7, RMSNormalization=2, Sigmoid=1)
WORDS = ("size_bias", "sizes", "attention_bias")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    directory = tmp_path_factory.mktemp("tiny")
    paths = tiny.llava(directory / "llava"), tiny.onevision(directory / "onevision")
    return Checkpoint.open(paths[0]), Checkpoint.open(paths[1])


def plans(checkpoints: tuple[Checkpoint, ...], method: str) -> list[Plan]:
    """Where the method fits."""
    found = []
    for checkpoint in checkpoints:
        try:
            found.append(make_plan(checkpoint, BuildOptions((0.33,), method=method)))
        except UsageError:
            continue
    return found


@pytest.mark.parametrize("method", sorted(METHODS))
def test_sizes_enter_a_decoder_only_where_a_method_counts_them(
    method: str, checkpoints: tuple[Checkpoint, ...]
) -> None:
    if method == "none":
        return
    counts = method_entry(method).sizes_in_decoder
    for plan in plans(checkpoints, method):
        assert plan.sized == counts
        assert {cut.sized for cut in plan.decoder} == {counts}
        for part in plan.budgets[0].layouts:
            for count in part.counts:
                inputs = reducer_job(plan, count, torch.float32).signature.inputs
                assert SIZE_BIAS not in inputs, "these methods are alone, so none scores with sizes"


def test_a_decoder_is_one_for_all_that_count_nothing(checkpoints: tuple[Checkpoint, ...]) -> None:
    """What a subgraph is traced from, for a method that merges with sizes and one that drops."""
    merging, dropping = (plans(checkpoints, name)[0] for name in ("anchors", "divprune"))
    assert merging.method.tracks_size
    assert merging.decoder == dropping.decoder
    assert plans(checkpoints, "tome")[0].decoder != dropping.decoder


def test_the_graphs_and_the_manifest_of_such_a_bundle_know_no_sizes(tiny_llava: Path) -> None:
    bundle = Bundle.open(tiny_llava / "bundle")
    assert not bundle.manifest.sized
    text = (bundle.directory / "manifest.json").read_text(encoding="utf-8")
    assert [word for word in WORDS if f'"{word}' in text] == []
    for stage in bundle.manifest.decoder:
        graph = onnx.load(bundle.path(stage.graph), load_external_data=False).graph
        names = {value.name for value in (*graph.input, *graph.output)}
        assert not names & set(WORDS)
        nodes = Counter(node.op_type for node in graph.node)
        layers = stage.last_layer - stage.first_layer
        assert {name: nodes[name] for name in LAYER} == {
            name: count * layers for name, count in LAYER.items()
        }
        for node in graph.node:
            if node.op_type == "Attention":
                assert not (node.input[3:4] and node.input[3]), "a mask"
                causal = [each.i for each in node.attribute if each.name == "is_causal"]
                assert causal == [1]
