"""Attention in plain operators, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hand_built import FLOAT, INT64, HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.decompose_attention import decompose_attention
from lvlm_export.graphs.passes.errors import PassError

HEADS, KV_HEADS, SIZE, ROWS, FILLED, CAPACITY = 4, 2, 8, 3, 5, 12
SCALE = 0.25
PLAIN = {name: random(seed, 2, HEADS, 6, SIZE) for seed, name in enumerate(("q", "k", "v"))}


def plain(
    dtype: ir.DataType = FLOAT, masked: bool = False, kv_heads: int = HEADS, **attributes: Any
) -> ir.Model:
    """Attention of a vision layer; its inputs and output are float32 whatever it computes in."""
    g = HandBuilt("layers.3.self_attn")
    heads = {"q": HEADS, "k": kv_heads, "v": kv_heads}
    values = [g.input(name, ["tiles", count, 6, SIZE]) for name, count in heads.items()]
    if masked:
        values.append(g.input("mask", ["tiles", 1, 6, 6]))
    if dtype != FLOAT:
        values = [g.node("Cast", value, to=dtype) for value in values]
    answer = g.node("Attention", *values, **({"scale": SCALE} | attributes))
    return g.model(y=answer if dtype == FLOAT else g.node("Cast", answer, to=FLOAT))


def attended(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The answer in plain numpy."""
    scores = SCALE * feeds["q"] @ feeds["k"].swapaxes(2, 3) + feeds.get("mask", 0.0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return {"y": weights / weights.sum(-1, keepdims=True) @ feeds["v"]}


@pytest.mark.parametrize("masked", [False, True])
def test_rule_1_every_token_sees_every_token(masked: bool) -> None:
    model = plain(masked=masked)
    feeds = PLAIN | ({"mask": random(9, 2, 1, 6, 6)} if masked else {})
    before = run(model, feeds)
    assert decompose_attention(model)
    found = operators(model)
    assert (found["Attention"], found["MatMul"], found["Softmax"]) == (0, 2, 1)
    assert found["Add"] == masked
    assert all(name.startswith("layers.3.self_attn/") for name in node_names(model))
    after = run(model, feeds)
    same_numbers(before, after)
    same_numbers(attended(feeds), after)


def test_rule_5_in_half_precision_the_softmax_is_in_float32() -> None:
    model = plain(ir.DataType.FLOAT16, masked=True)
    feeds = PLAIN | {"mask": random(9, 2, 1, 6, 6)}
    assert decompose_attention(model)
    before = order(model)
    # The scale is a factor of the queries, before the first product.
    assert before.index("Mul") < before.index("MatMul") < before.index("Softmax")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    scores, cast = softmax.inputs[0].producer(), softmax.outputs[0].consumers()[0]
    assert [each.producer().op_type for each in scores.inputs] == ["Cast", "Cast"]
    assert cast.attributes["to"].as_int() == ir.DataType.FLOAT16
    same_numbers(attended(feeds), run(model, feeds), limit=2e-3)


def test_rule_5_in_bfloat16_the_scale_stands_behind() -> None:
    model = plain(ir.DataType.BFLOAT16)
    assert decompose_attention(model)
    found = order(model)
    assert found.index("MatMul") < found.index("Mul") < found.index("Softmax")
    factor = next(node for node in model.graph if node.op_type == "Mul").inputs[1].producer()
    assert factor.attributes["value"].as_tensor().dtype == FLOAT


def order(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


class Cached:
    """Two layers' attention over caches that the graph writes."""

    def __init__(
        self, heads: int = HEADS, layers: int = 2, seen: bool = False, **attributes: Any
    ) -> None:
        self.heads, self.g = heads, HandBuilt()
        self.query = self.g.input("query", [1, heads, "sequence", SIZE])
        self.positions = self.g.input("position_ids", [1, "sequence"], INT64)
        self.write_index = self.g.input("write_index", [1], INT64)
        self.kv_length = self.g.input("kv_length", [1], INT64)
        rows = [self.g.input(name, [1, KV_HEADS, "sequence", SIZE]) for name in ("key", "value")]
        self.outputs: dict[str, ir.Value] = {}
        for index in range(layers):
            self.g.scope = f"layers.{index}.self_attn"
            written = []
            for name, new in zip(("key", "value"), rows, strict=True):
                cache = self.g.input(f"past_{name}.{index}", [1, KV_HEADS, "cache", SIZE])
                written.append(self.g.written(cache, new))
                self.outputs[f"present_{name}.{index}"] = written[-1]
            mask = self.g.seen_mask(cache) if seen and index == 0 else None
            attributes |= {"mask": mask} if mask is not None else {}
            answer = self.g.attention(self.query, *written, self.kv_length, **attributes)
            self.outputs[f"y.{index}"] = answer

    def model(self, **outputs: ir.Value) -> ir.Model:
        return self.g.model(**self.outputs, **outputs)

    def feeds(self) -> dict[str, NDArray[Any]]:
        """Five rows are filled and three come."""
        feeds: dict[str, NDArray[Any]] = {
            "query": random(1, 1, self.heads, ROWS, SIZE),
            "key": random(2, 1, KV_HEADS, ROWS, SIZE),
            "value": random(3, 1, KV_HEADS, ROWS, SIZE),
            "position_ids": np.arange(FILLED, FILLED + ROWS)[None],
            "write_index": np.array([FILLED]),
            "kv_length": np.array([FILLED + ROWS]),
        }
        names = {str(value.name) for value in self.g.inputs}
        for seed, name in enumerate(sorted(names - feeds.keys())):
            feeds[name] = np.zeros((1, KV_HEADS, CAPACITY, SIZE), np.float32)
            feeds[name][:, :, :FILLED] = random(seed, 1, KV_HEADS, FILLED, SIZE)
        return feeds


@pytest.mark.parametrize("heads", [KV_HEADS, HEADS])
def test_rules_2_to_4_over_filled_rows_and_new_ones(heads: int) -> None:
    cached = Cached(heads)
    model, feeds = cached.model(), cached.feeds()
    before = run(model, feeds)
    assert decompose_attention(model)
    found = operators(model)
    assert not found.keys() & {"Attention", "TensorScatter"}
    # One mask for all layers, repeated for the heads of a group.
    assert (found["Range"], found["Where"], found["Tile"]) == (2, 1, int(heads > KV_HEADS))
    places = {"causal_mask", "layers.0.self_attn", "layers.1.self_attn"}
    assert {name.rpartition("/")[0] for name in node_names(model)} == places
    dims = {value.name: list(map(str, value.shape)) for value in model.graph.inputs}
    assert dims.keys() == feeds.keys() - {"write_index", "kv_length"}
    assert dims["past_key.1"] == ["1", "cache", "2", "8"]
    sizes = {value.name: list(map(str, value.shape)) for value in model.graph.outputs}
    assert sizes["present_value.1"] == ["1", "sequence", "2", "8"]
    filled = {
        name: value[:, :, :FILLED].swapaxes(1, 2) if name.startswith("past") else value
        for name, value in feeds.items()
        if name in dims
    }
    expected = {
        name: value[:, :, FILLED : FILLED + ROWS].swapaxes(1, 2) if "present" in name else value
        for name, value in before.items()
    }
    same_numbers(expected, run(model, filled))


@pytest.mark.parametrize("heads", [KV_HEADS, HEADS])
def test_rule_2_rows_may_say_what_they_see(heads: int) -> None:
    cached = Cached(heads, seen=True)
    model, feeds = cached.model(), cached.feeds()
    # The first two see one another, the last what is before it.
    feeds["seen_to"] = np.array([FILLED + 2, FILLED + 2, FILLED + 3])
    before = run(model, feeds)
    assert decompose_attention(model)
    names = {str(value.name) for value in model.graph.inputs}
    filled = {
        name: value[:, :, :FILLED].swapaxes(1, 2) if name.startswith("past") else value
        for name, value in feeds.items()
        if name in names
    }
    same_numbers({"y.1": before["y.1"]}, {"y.1": run(model, filled)["y.1"]})
    causal = run(model, filled | {"seen_to": np.arange(FILLED + 1, FILLED + 4)})
    apart = np.abs(causal["y.1"] - before["y.1"]).max(axis=(0, 1, 3))
    assert apart[0] > 1e-3
    assert apart[1:].max() < 1e-6


def test_a_graph_without_attention_stays() -> None:
    g = HandBuilt()
    model = g.model(y=g.node("Neg", g.input("x", [4])))
    assert not decompose_attention(model)
    assert operators(model) == {"Neg": 1}


ATTENTION = r"decompose_attention: node layers\.\d\.self_attn/Attention \(Attention\): expected "


def refused(model: ir.Model, message: str, node: str = ATTENTION) -> None:
    with pytest.raises(PassError, match=f"{node}{message}; the graph was traced with"):
        decompose_attention(model)


def test_rule_1_with_a_cache_of_its_own_is_refused() -> None:
    model = plain()
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.resize_inputs(5)
    refused(model, "3, 4 or 7 inputs, found 5")


def test_rule_1_causal_without_a_cache_is_refused() -> None:
    refused(plain(is_causal=1), r"attributes scale alone, found \{.*'is_causal': 1\}")


def test_rule_1_without_a_scale_is_refused() -> None:
    model = plain()
    del next(node for node in model.graph if node.op_type == "Attention").attributes["scale"]
    refused(model, r"attributes scale alone, found \{\}")


def test_rule_1_grouped_heads_are_refused() -> None:
    refused(plain(kv_heads=2), "as many heads of keys as of queries, found 2 and 4")


def test_an_element_type_that_is_not_known_is_refused() -> None:
    model = plain()
    model.graph.inputs[0].type = None
    refused(model, "input 0 of a known element type, found none")


def test_rule_2_not_causal_is_refused() -> None:
    refused(Cached(is_causal=0).model(), r"attributes scale and is_causal=1 alone, found \{.*\}")


def test_rule_2_heads_that_are_no_groups_are_refused() -> None:
    refused(Cached(heads=3).model(), "heads in groups of 2, found 3 heads")


def test_rule_2_without_positions_is_refused() -> None:
    model = Cached().model()
    model.graph.inputs.pop(1)
    graph = r"decompose_attention: graph decoder\.1: expected "
    found = "an input position_ids, found inputs query, write_index, kv_length, .*"
    refused(model, found, graph)


def test_rule_3_caches_that_are_not_written_by_the_graph_are_refused() -> None:
    model = Cached().model()
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.replace_input_with(2, node.inputs[2].producer().inputs[0])
    refused(model, r"input 2 from TensorScatter, found value past_value\.0")


def test_rule_3_a_cache_of_no_known_size_is_refused() -> None:
    model = Cached().model()
    next(value for value in model.graph.inputs if value.name == "past_key.0").shape = None
    node = r"node layers\.0\.self_attn/TensorScatter \(TensorScatter\): expected "
    refused(
        model, r"past_key\.0 of four axes with constant sizes on 1 and 3, found shape None", node
    )


@pytest.mark.parametrize("name", ["write_index", "kv_length"])
def test_rule_4_another_use_of_where_rows_go_is_refused(name: str) -> None:
    cached = Cached()
    cached.g.scope = "embed"
    model = cached.model(other=cached.g.node("Neg", getattr(cached, name)))
    node = r"decompose_attention: node embed/Neg \(Neg\): expected "
    refused(model, f"{name} for the caches alone, found another use of it", node)
