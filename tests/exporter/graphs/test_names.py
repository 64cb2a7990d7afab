"""Axes and nodes of the exported graphs have names that a person can follow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import tiny
from helpers import build_tiny
from lvlm_export.graphs.export import example, full_names
from lvlm_export.graphs.names import name_axes, name_nodes, number_nodes, scope_of
from lvlm_export.graphs.trace import Signature, trace

# Every axis that a request brings, over all graphs of a bundle; each means one thing.
AXES = {
    *("tiles", "tokens", "edge", "images", "text", "visual", "sequence", "cache"),
    *("reduced", "entered"),
}
TRACED = re.compile(r"\b[su]\d+\b")


class Model(nn.Module):
    """Two layers of which a subgraph may take one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))


class Subgraph(nn.Module):
    """The second layer, twice, and something of its own."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.blocks = model.layers[1:]
        self.own = nn.Tanh()

    def forward(self, text: Tensor, visual: list[Tensor]) -> Tensor:
        joined = torch.cat((text, visual[0].flatten(0, 1), visual[1].flatten(0, 1)))
        for block in (*self.blocks, *self.blocks):
            joined = block(joined)
        return self.own(joined) + 1.0


@pytest.fixture(scope="module")
def traced() -> tuple[ir.Model, Model, Subgraph]:
    model = Model()
    module = Subgraph(model)
    dims = {name: torch.export.Dim(name, min=1, max=64) for name in ("text", "images", "visual")}
    stacks = [{0: dims["images"], 1: dims["visual"]}] * 2
    arguments = (
        example((5, 4), torch.float32),
        [example((2, 3, 4), torch.float32), example((2, 3, 4), torch.float32)],
    )
    signature = Signature(("text", "left", "right"), ("out",), ({0: dims["text"]}, stacks))
    return trace(module, arguments, signature).model, model, module


def test_axes_get_the_names_of_their_dims(traced: tuple[ir.Model, Model, Subgraph]) -> None:
    graph = traced[0].graph
    dims = {name: torch.export.Dim(name) for name in ("text", "images", "visual")}
    assert TRACED.match(str(graph.inputs[0].shape[0]))
    stacks = [{0: dims["images"], 1: dims["visual"]}] * 2
    name_axes(graph, ({0: dims["text"]}, stacks))
    shapes = [list(map(str, value.shape)) for value in (*graph.inputs, *graph.outputs)]
    assert shapes[:3] == [["text", "4"], ["images", "visual", "4"], ["images", "visual", "4"]]
    # Terms stand in the order of the tracer's symbols.
    assert sorted(re.split(r" \+ |\*", shapes[3][0])) == ["2", "images", "text", "visual"]


def test_nodes_get_the_names_of_their_modules(traced: tuple[ir.Model, Model, Subgraph]) -> None:
    result, model, module = traced
    name_nodes(result.graph, module, full_names(model), "decoder.1")
    names = [str(node.name) for node in result.graph]
    # The layer of the model, not of the subgraph; called twice, so numbered.
    assert {"layers.1.1/Relu", "layers.1.1/Relu_1"} <= set(names)
    products = [name for name in names if re.match(r"layers\.1\.0/(Gemm|MatMul)", name)]
    assert len(products) == len(set(products)) == 2
    # No module of the model: its place in the subgraph, and what stands for the subgraph itself.
    assert {"own/Tanh", "decoder.1/Add"} <= set(names)
    assert not [name for name in names if name.startswith(("blocks", "node_"))]


def test_numbers_follow_the_order_of_a_rewritten_graph() -> None:
    value = ir.val("x", ir.DataType.FLOAT, [4])
    names = (
        "layers.0.mlp/Neg_1",
        "layers.0.mlp/Neg",
        "layers.0.mlp/Neg",
        "Neg",
        "layers.0.mlp/Abs",
    )
    nodes = [ir.node(name.split("/")[-1][:3], [value], name=name) for name in names]
    graph = ir.Graph([value], [], nodes=nodes, name="decoder.0")
    number_nodes(graph)
    assert [node.name for node in graph] == [
        "layers.0.mlp/Neg",
        "layers.0.mlp/Neg_1",
        "layers.0.mlp/Neg_2",
        "Neg/Neg",
        "layers.0.mlp/Abs",
    ]
    assert [scope_of(node) for node in graph][2:4] == ["layers.0.mlp", "Neg"]


def onevision(folder: Path) -> Path:
    """Several tiles, packers, a head in parts and the plain operators."""
    path = tiny.onevision(folder / "checkpoint")
    options = {"dialect": "decomposed", "lm_head_splits": 2, "method": "visionzip+fastv"}
    return build_tiny(path, folder / "bundle", 0.5, **options).directory


@pytest.fixture(scope="module", params=["demo", "quecc", onevision])
def models(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    demo_bundle: Path,
    tiny_quecc: Path,
) -> dict[str, onnx.ModelProto]:
    """Graphs by the name of their file; the demo's are those of a CPU, in its own operators.

    QueCC is a trained projector that reads the question.
    """
    shared = {"demo": demo_bundle, "quecc": tiny_quecc / "bundle"}
    bundle = shared.get(request.param) or request.param(tmp_path_factory.mktemp("names"))
    return {path.stem: onnx.load(path, load_external_data=False) for path in bundle.glob("*.onnx")}


def sizes(model: onnx.ModelProto) -> Iterator[Any]:
    for value in (*model.graph.input, *model.graph.output):
        yield from (each.dim_param for each in value.type.tensor_type.shape.dim if each.dim_param)


def test_no_axis_has_a_name_of_the_tracers(models: dict[str, onnx.ModelProto]) -> None:
    for stem, model in models.items():
        found = set(sizes(model))
        assert not [name for name in found if TRACED.search(name)], stem
        assert {word for name in found for word in re.findall(r"[a-z_]+", name)} <= AXES, stem


def test_inputs_and_outputs_share_their_axes(models: dict[str, onnx.ModelProto]) -> None:
    """What goes out is made of what comes in: no output brings a symbol of its own."""
    for stem, model in models.items():
        words = [
            {word for value in values for word in re.findall(r"[a-z_]+", str(value))}
            for values in (
                [each.dim_param for value in side for each in value.type.tensor_type.shape.dim]
                for side in (model.graph.input, model.graph.output)
            )
        ]
        assert words[1] <= words[0], stem


def test_every_node_has_a_name_of_its_own(models: dict[str, onnx.ModelProto]) -> None:
    for stem, model in models.items():
        names = [node.name for node in model.graph.node]
        assert all(re.fullmatch(r"[\w.]+/[A-Z]\w+", name) for name in names), stem
        assert [name for name, count in Counter(names).items() if count > 1] == [], stem


def test_products_with_weights_name_their_layer(models: dict[str, onnx.ModelProto]) -> None:
    """``X.weight^T`` is multiplied by ``X/MatMul``, where ``X`` is the name in the whole model."""
    found = 0
    for model in models.values():
        weights = {tensor.name for tensor in model.graph.initializer if "weight" in tensor.name}
        for node in model.graph.node:
            names = weights & set(node.input) if node.op_type in ("MatMul", "Gemm") else set()
            for name in names:
                layer = name.partition(".weight")[0]
                assert node.name.startswith(layer), f"{node.name} multiplies with {name}"
                found += 1
    assert found > 20


def test_a_decoder_subgraph_counts_layers_as_the_model_does(demo_bundle: Path) -> None:
    model = onnx.load(demo_bundle / "decoder.1.onnx", load_external_data=False)
    caches = {value.name.partition(".")[2] for value in model.graph.input} - {""}
    found = re.findall(r"layers\.(\d+)", " ".join(node.name for node in model.graph.node))
    assert set(found) == caches
    assert min(map(int, caches)) > 0
