"""Every method's reducers as ONNX graphs: weight-free, static, and equal to their torch modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.export import export_graph
from lvlm_export.graphs.reducers import Reducer, make_reducer, reducer_inputs
from lvlm_export.graphs.trace import Signature
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan
from lvlm_export.reduction import METHODS
from lvlm_export.reduction.reducers import DecoderReducer
from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.sequence import place_tokens

REDUCING = sorted(set(METHODS) - {"none"})
FORBIDDEN = {"Loop", "If", "Scan", "NonZero", "Unique", "Compress"}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.onevision(tmp_path_factory.mktemp("tiny") / "onevision")


def plan_for(checkpoint: Path, method: str) -> Plan:
    return make_plan(Checkpoint.open(checkpoint), BuildOptions((0.33,), method=method))


def sizes_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """A constant or a symbol per axis."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]


def check_axes(graph: onnx.GraphProto, signature: Signature, keep: int) -> None:
    """Dynamic is only what a request brings (tiles, images, the prompt's length); K is constant."""
    brought = set()
    for value, axes in zip(graph.input, signature.dynamic_shapes, strict=True):
        symbols = {axis: size for axis, size in enumerate(sizes_of(value)) if isinstance(size, str)}
        assert symbols == {axis: dim.__name__ for axis, dim in axes.items()}, value.name
        brought |= set(symbols.values())
    for value in graph.output:
        assert {size for size in sizes_of(value) if isinstance(size, str)} <= brought, value.name
        if value.name == "places":
            assert sizes_of(value)[1] == keep


def feeds_for(reducer: Reducer, example: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Random inputs; in the decoder two images between three runs of text."""
    torch.manual_seed(0)
    feeds = {
        name: torch.randn(value.shape, dtype=value.dtype)
        for name, value in zip(reducer.inputs, example, strict=True)
        if value.is_floating_point()
    }
    if "sizes" in feeds:
        feeds["sizes"] = 1 + feeds["sizes"].abs().round()
    if "origins" in reducer.inputs:
        stood = torch.arange(reducer.shape.tokens_in)
        feeds["origins"] = stood.repeat(len(example[0]), 1)
    if isinstance(reducer, DecoderReducer):
        runs, text = [3, 2, 4], np.arange(9)
        entered = {"text_embeds": (1, 9), "visual_embeds": (2, reducer.shape.tokens_in + 3)}
        for name in entered.keys() & feeds.keys():
            feeds[name] = torch.randn(*entered[name], feeds[name].shape[-1])
        before = place_tokens(runs, text, 9, reducer.shape.tokens_in)
        after = place_tokens(runs, before.text, len(before.order), reducer.shape.tokens_out)
        feeds["position_ids"] = torch.arange(len(before.order))[None]
        feeds["visual_index"] = torch.from_numpy(before.visual)
        feeds["order"] = torch.from_numpy(after.order)
        feeds["text_index"] = torch.from_numpy(before.text)
    return {name: feeds[name] for name in reducer.inputs}


@pytest.mark.parametrize("method", REDUCING)
def test_reducer_graphs_are_static_and_equal_their_modules(
    method: str, llava: Path, tmp_path: Path
) -> None:
    plan = plan_for(llava, method)
    budget = plan.budgets[0]
    for count in (*budget.vision, *budget.layouts[0].counts):
        reducer = make_reducer(plan, count)
        arguments, signature = reducer_inputs(plan, reducer, torch.float32)
        path = tmp_path / f"{count.site.name}.onnx"
        export_graph(reducer, arguments, signature, path, {}, None)
        graph = onnx.load(path).graph
        nodes = graph.node
        assert {node.op_type for node in nodes} & FORBIDDEN == set()
        assert [node.op_type for node in nodes if node.op_type.startswith("Scatter")] == []
        assert [value.name for value in graph.output] == list(reducer.outputs)
        check_axes(graph, signature, count.tokens_out)
        feeds = feeds_for(reducer, arguments)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = session.run(None, {name: value.numpy() for name, value in feeds.items()})
        expected = reducer(*feeds.values())
        for name, one, other in zip(reducer.outputs, got, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["prumerge", "prumerge_plus"])
def test_a_token_without_a_place_does_not_fit_packed_tiles(method: str, onevision: Path) -> None:
    with pytest.raises(UsageError, match=f"method {method} appends a token that has no place"):
        plan_for(onevision, method)


def test_more_tokens_than_can_be_told_apart_are_refused(onevision: Path) -> None:
    checkpoint = Checkpoint.open(onevision)
    options = BuildOptions((0.1,), method="cdpruner", image_size=(100, 140))
    assert make_plan(checkpoint, options).budgets
    line = "distinguish at most as many tokens as the model is wide, 48, and ratio 0.5 keeps 132 of .* 264"
    with pytest.raises(UsageError, match=line):
        make_plan(checkpoint, dataclasses.replace(options, ratios=(0.5,)))


def test_a_method_that_needs_a_cls_token_is_refused_without(onevision: Path) -> None:
    with pytest.raises(UsageError, match="method image_text needs the CLS token of a CLIP tower"):
        plan_for(onevision, "image_text")


@pytest.mark.parametrize("method", ["visionzip", "divprune"])
def test_methods_before_the_decoder_fit_packed_tiles(method: str, onevision: Path) -> None:
    for part in plan_for(onevision, method).budgets[0].layouts:
        assert part.decoder == ()
        assert part.tokens_in == part.tokens_out < part.tokens_full


def test_ratios_of_different_sites_share_a_bundle(llava: Path) -> None:
    plan = make_plan(Checkpoint.open(llava), BuildOptions((0.25, 0.5), method="vtw"))
    assert [site.name for site in plan.sites] == ["decoder@1", "decoder@2"]
    assert [len(budget.layouts[0].decoder) for budget in plan.budgets] == [1, 1, 0]
