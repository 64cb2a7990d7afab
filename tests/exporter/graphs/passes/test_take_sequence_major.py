"""An input that lies row by row, on graphs built by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hand_built import HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.passes.take_sequence_major import take_sequence_major


def test_rules_1_and_2_an_input_is_turned_back_for_all_that_take_it() -> None:
    g = HandBuilt("selector")
    query, key = g.input("query", [1, 2, 3, 8]), g.input("key", [1, 2, "cache", 8])
    scores = g.node("MatMul", query, g.node("Transpose", key, perm=[0, 1, 3, 2]))
    model = g.model(scores=scores, first=g.node("Neg", key))
    feeds = {"query": random(1, 1, 2, 3, 8), "key": random(2, 1, 2, 5, 8)}
    before = run(model, feeds)
    assert take_sequence_major(model)
    assert list(map(str, model.graph.inputs[1].shape)) == ["1", "cache", "2", "8"]
    assert operators(model)["Transpose"] == 2
    assert "key/Transpose" in node_names(model)
    turned = {"query": feeds["query"], "key": np.ascontiguousarray(feeds["key"].swapaxes(1, 2))}
    same_numbers(before, run(model, turned))


def test_rule_2_nobody_takes_it() -> None:
    g = HandBuilt()
    g.input("key", [1, 2, "cache", 8])
    model = g.model(y=g.node("Neg", g.input("x", [4])))
    assert take_sequence_major(model)
    assert list(map(str, model.graph.inputs[0].shape)) == ["1", "cache", "2", "8"]
    assert operators(model) == {"Neg": 1}


def test_without_the_input_it_is_refused() -> None:
    g = HandBuilt()
    model = g.model(y=g.node("Neg", g.input("query", [4])))
    message = r"take_sequence_major: graph decoder\.1: expected an input key, found inputs query;"
    with pytest.raises(PassError, match=message):
        take_sequence_major(model)


def test_rule_1_another_rank_is_refused() -> None:
    g = HandBuilt()
    model = g.model(y=g.node("Neg", g.input("key", ["cache", 8])))
    message = (
        r"graph decoder\.1: expected input key of four axes, found shape \[cache,8\]; the graph"
    )
    with pytest.raises(PassError, match=message):
        take_sequence_major(model)
