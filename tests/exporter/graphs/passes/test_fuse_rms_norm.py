"""A root mean square norm in one node, on graphs built by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hand_built import FLOAT, HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.fuse_rms_norm import fuse_rms_norm

FEEDS = {"x": random(1, 1, 5, 8)}


def norm(g: HandBuilt, x: ir.Value, epsilon: ir.Value, dtype: type = np.float32) -> ir.Value:
    """``x / sqrt(mean(x^2) + epsilon)`` as the tracer writes it, without the weight."""
    squares = g.node("Pow", x, g.constant(2.0, dtype))
    mean = g.node("ReduceMean", squares, g.constant([-1]), keepdims=1, noop_with_empty_axes=0)
    root = g.node("Sqrt", g.node("Add", mean, epsilon))
    return g.node("Mul", x, g.node("Reciprocal", root))


def test_rule_1_a_norm_becomes_one_node() -> None:
    g = HandBuilt("layers.3.input_layernorm")
    x, weight = g.input("x", [1, "sequence", 8]), g.weight("w", random(2, 8))
    model = g.model(y=g.node("Mul", weight, norm(g, x, g.constant(1e-2, np.float32))))
    before = run(model, FEEDS)
    assert fuse_rms_norm(model)
    assert operators(model) == {"RMSNormalization": 1}
    assert node_names(model) == {"layers.3.input_layernorm/RMSNormalization"}
    same_numbers(before, run(model, FEEDS))


def test_rule_2_epsilon_that_is_computed_stays() -> None:
    g = HandBuilt()
    x, weight = g.input("x", [1, "sequence", 8]), g.weight("w", random(2, 8))
    model = g.model(y=g.node("Mul", weight, norm(g, x, g.input("epsilon", [], FLOAT))))
    unchanged(model)


def test_rule_3_without_a_weight_stays() -> None:
    g = HandBuilt()
    unchanged(g.model(y=norm(g, g.input("x", [1, "sequence", 8]), g.constant(1e-2, np.float32))))


def test_rule_3_between_casts_stays() -> None:
    g = HandBuilt()
    x, weight = g.input("x", [1, "s", 8], ir.DataType.FLOAT16), g.weight("w", random(2, 8))
    wide = norm(g, g.node("Cast", x, to=FLOAT), g.constant(1e-2, np.float32))
    narrow = g.node("Cast", wide, to=ir.DataType.FLOAT16)
    half = g.node("Cast", weight, to=ir.DataType.FLOAT16)
    unchanged(g.model(y=g.node("Mul", half, narrow)))


@pytest.mark.parametrize("axis", [1, -2])
def test_rule_1_over_another_axis_stays(axis: int) -> None:
    g = HandBuilt()
    x, weight = g.input("x", [1, "sequence", 8]), g.weight("w", random(2, 8))
    squares = g.node("Pow", x, g.constant(2.0, np.float32))
    mean = g.node("ReduceMean", squares, g.constant([axis]), keepdims=1, noop_with_empty_axes=0)
    root = g.node("Sqrt", g.node("Add", mean, g.constant(1e-2, np.float32)))
    scaled = g.node("Mul", x, g.node("Reciprocal", root))
    unchanged(g.model(y=g.node("Mul", weight, scaled)))


def unchanged(model: ir.Model) -> None:
    """The rewrite says that it did nothing, and did nothing."""
    before = operators(model)
    assert not fuse_rms_norm(model)
    assert operators(model) == before
