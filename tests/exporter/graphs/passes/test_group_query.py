"""Attention over a cache as onnxruntime's own operator, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from hand_built import INT64, HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.passes.group_query import MICROSOFT, use_group_query_attention

HEADS, KV_HEADS, ROWS, FILLED, CAPACITY = 4, 2, 3, 5, 12


class Layers:
    """Decoder layers' attention over their caches, from rows ``[1, S, H*D]`` to the same."""

    def __init__(self, size: int = 16) -> None:
        self.size, self.g = size, HandBuilt()
        rows = [1, "sequence", HEADS * size]
        few = [1, "sequence", KV_HEADS * size]
        self.query = self.g.input("query", rows)
        self.key, self.value = self.g.input("key", few), self.g.input("value", few)
        self.write_index = self.g.input("write_index", [1], INT64)
        self.kv_length = self.g.input("kv_length", [1], INT64)
        self.outputs: dict[str, ir.Value] = {}

    def layer(self, index: int, turned: bool = False, **attributes: Any) -> ir.Node:
        """One layer; ``turned``: queries and keys do not come straight from rows."""
        g = self.g
        g.scope = f"layers.{index}.self_attn"
        caches = [
            g.input(f"past_{name}.{index}", [1, KV_HEADS, "cache", self.size])
            for name in ("key", "value")
        ]
        query = g.heads(self.query, HEADS, self.size)
        key = g.heads(self.key, KV_HEADS, self.size)
        if turned:
            query, key = g.node("Neg", query), g.node("Neg", key)
        new = key, g.heads(self.value, KV_HEADS, self.size)
        key, value = (g.written(cache, each) for cache, each in zip(caches, new, strict=True))
        length = attributes.pop("length", self.kv_length)
        mask = attributes.pop("mask", None)
        answer = g.attention(query, key, value, length, mask, **attributes)
        self.outputs |= {f"present_key.{index}": key, f"present_value.{index}": value}
        self.outputs[f"out.{index}"] = g.joined(answer, HEADS * self.size)
        return answer.producer()

    def model(self, **others: Any) -> ir.Model:
        return self.g.model(**others, **self.outputs)

    def feeds(self) -> dict[str, Any]:
        """Five rows are filled and three come."""
        feeds: dict[str, Any] = {
            "query": random(1, 1, ROWS, HEADS * self.size),
            "key": random(2, 1, ROWS, KV_HEADS * self.size),
            "value": random(3, 1, ROWS, KV_HEADS * self.size),
            "write_index": np.array([FILLED]),
            "kv_length": np.array([FILLED + ROWS]),
        }
        names = {value.name for value in self.g.inputs}
        for seed, name in enumerate(sorted(names - feeds.keys())):
            feeds[name] = np.zeros((1, KV_HEADS, CAPACITY, self.size), np.float32)
            feeds[name][:, :, :FILLED] = random(seed, 1, KV_HEADS, FILLED, self.size)
        return feeds


def test_rules_3_to_6_every_layer_becomes_one_node() -> None:
    layers = Layers()
    layers.layer(2)
    layers.layer(3)
    model = layers.model()
    before = run(model, layers.feeds())
    assert use_group_query_attention(model)
    assert operators(model) == {
        "GroupQueryAttention": 2,
        "Constant": 1,
        "Sub": 1,
        "Cast": 2,
    }
    assert model.opset_imports[MICROSOFT] == 1
    assert {f"layers.{index}.self_attn/GroupQueryAttention" for index in (2, 3)} <= node_names(
        model
    )
    assert {"kv_length/Sub", "kv_length/Cast"} <= node_names(model)
    same_numbers(before, run(model, layers.feeds()))


def test_rule_5_heads_of_another_kind_are_turned_back_into_rows() -> None:
    layers = Layers()
    layers.layer(3, turned=True)
    model = layers.model()
    before = run(model, layers.feeds())
    assert use_group_query_attention(model)
    found = operators(model)
    assert (found["GroupQueryAttention"], found["Attention"]) == (1, 0)
    # To heads and back for queries and keys; values stay rows.
    assert found["Transpose"] == found["Reshape"] == 4
    same_numbers(before, run(model, layers.feeds()))


def test_rule_2_head_size_that_does_not_fit_stays() -> None:
    layers = Layers(size=12)
    layers.layer(3)
    unchanged(layers.model())


def test_rule_1_attention_without_a_filled_length_stays() -> None:
    g = HandBuilt("layers.0.self_attn")
    shape = ["tiles", HEADS, "tokens", 16]
    query, key, value = (g.input(name, shape) for name in ("query", "key", "value"))
    unchanged(g.model(y=g.node("Attention", query, key, value, scale=0.25)))


def unchanged(model: ir.Model) -> None:
    """The rewrite says that it did nothing, and did nothing."""
    before = operators(model)
    assert not use_group_query_attention(model)
    assert operators(model) == before
    assert MICROSOFT not in model.opset_imports


NODE = r"group_query: node layers\.3\.self_attn/Attention \(Attention\): expected "


def refused(model: ir.Model, message: str) -> None:
    with pytest.raises(PassError, match=f"{NODE}{message}; the graph was traced with transformers"):
        use_group_query_attention(model)


def test_rule_1_not_causal_is_refused() -> None:
    layers = Layers()
    layers.layer(3, is_causal=0)
    message = r"attributes scale and is_causal=1 alone, found \{'scale': 0.25, 'is_causal': 0\}"
    refused(layers.model(), message)


def test_an_attribute_that_changes_the_numbers_is_refused() -> None:
    layers = Layers()
    layers.layer(3, softcap=30.0)
    refused(layers.model(), r"attributes scale and is_causal=1 alone, found .*'softcap': 30.0\}")


def test_rule_2_a_head_size_that_is_not_known_is_refused() -> None:
    layers = Layers()
    layers.layer(3)
    message = r"out of four axes with constant sizes on 3, found shape None"
    node = layers.g.nodes[-3]
    assert node.op_type == "Attention"
    node.outputs[0].name = "out"
    refused(layers.model(infer=False), message)


def test_rule_3_keys_from_elsewhere_are_refused() -> None:
    layers = Layers()
    node = layers.layer(3)
    model = layers.model()
    other = ir.node("Concat", [node.inputs[1].producer().inputs[0]], {"axis": 2}, name="Concat")
    model.graph.insert_before(node, other)
    node.replace_input_with(1, other.outputs[0])
    refused(model, "input 1 from TensorScatter, found Concat")
    node.replace_input_with(1, model.graph.inputs[0])
    refused(model, "input 1 from TensorScatter, found value query")


def test_rule_3_rows_on_another_axis_are_refused() -> None:
    layers = Layers()
    node = layers.layer(3)
    model = layers.model()
    node.inputs[2].producer().attributes["axis"] = ir.AttrInt64("axis", 1)
    message = (
        r"TensorScatter \(TensorScatter\): expected axis 2, the rows of the cache, found axis 1"
    )
    with pytest.raises(PassError, match=message.removeprefix("TensorScatter ")):
        use_group_query_attention(model)


def test_rule_4_an_answer_that_is_not_made_rows_is_refused() -> None:
    layers = Layers()
    node = layers.layer(3)
    layers.outputs["negative"] = layers.g.node("Neg", node.outputs[0])
    refused(layers.model(), "Transpose alone to take it, found Transpose and Neg")


def test_rule_4_half_of_what_makes_rows_is_refused() -> None:
    layers = Layers()
    node = layers.layer(3)
    reshape = node.outputs[0].consumers()[0].outputs[0].consumers()[0]
    del layers.outputs["out.3"]
    layers.g.nodes.remove(reshape)
    reshape.replace_input_with(0, None)
    layers.outputs["out.3"] = layers.g.node("Neg", node.outputs[0].consumers()[0].outputs[0])
    message = r"Transpose \(Transpose\): expected Reshape alone to take it, found Neg;"
    with pytest.raises(PassError, match=message):
        use_group_query_attention(layers.model())


def test_rule_6_two_filled_lengths_are_refused() -> None:
    layers = Layers()
    layers.layer(2)
    layers.layer(3, length=layers.g.node("Neg", layers.kv_length))
    refused(layers.model(), "one filled length for all layers, found Neg and value kv_length")


def test_rule_7_sizes_become_a_bias_of_what_is_filled() -> None:
    layers = Layers()
    layers.layer(0, mask=layers.g.sized_mask(layers.query))
    model = layers.model()
    feeds = layers.feeds()
    # Behind the filled rows, where nothing may be read, stands what would be seen.
    feeds["size_bias"] = np.log(np.arange(1.0, 1 + CAPACITY, dtype=np.float32))[None]
    feeds["size_bias"][:, FILLED + ROWS :] = np.inf
    feeds["position_ids"] = np.arange(FILLED, FILLED + ROWS)[None]
    finite = feeds | {"size_bias": np.nan_to_num(feeds["size_bias"], posinf=9.0)}
    before = run(model, finite)
    assert use_group_query_attention(model)
    assert operators(model)["GroupQueryAttention"] == 1
    assert operators(model)["Where"] == 0
    same_numbers(before, run(model, feeds))
    flat = run(model, finite | {"size_bias": np.zeros((1, CAPACITY), np.float32)})
    assert np.abs(flat["out.0"] - before["out.0"]).max() > 1e-3


def test_rule_1_rows_that_say_what_they_see_stay() -> None:
    layers = Layers()
    layers.layer(0, mask=layers.g.seen_mask(layers.g.input("room", [1, 1, "cache", 1])))
    model = layers.model()
    assert not use_group_query_attention(model)
    assert operators(model)["Attention"] == 1


def test_another_mask_over_a_cache_is_named() -> None:
    layers = Layers()
    layers.g.input("size_bias", [1, "cache"])
    mask = layers.g.node("Neg", layers.g.input("mask", [1, 1, "sequence", "cache"]))
    layers.layer(0, mask=mask)
    with pytest.raises(PassError, match="a mask from Where over size_bias"):
        use_group_query_attention(layers.model())
