"""Rotary position embedding in one node, on graphs built by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hand_built import HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.fuse_rotary import fuse_rotary_embedding

HEADS, SIZE, ROWS = 4, 16, 5
FEEDS = {"rows": random(1, 1, ROWS, HEADS * SIZE), "angles": random(2, 1, ROWS, SIZE // 2)}


def rotary(
    g: HandBuilt, half: int = SIZE // 2, scaled: float | None = None
) -> tuple[ir.Value, ir.Value]:
    """Heads and turned heads, as transformers' Llama is traced."""
    rows = g.input("rows", [1, "sequence", HEADS * SIZE])
    angles = g.input("angles", [1, "sequence", SIZE // 2])
    g.scope = "rotary_emb"
    both = g.node("Concat", angles, angles, axis=-1)
    tables = [g.node(name, both) for name in ("Cos", "Sin")]
    if scaled is not None:
        tables = [g.node("Mul", each, g.constant(scaled, np.float32)) for each in tables]
    g.scope = "layers.3.self_attn"
    heads = g.heads(rows, HEADS, SIZE)
    one = g.constant([1])
    cos, sin = (g.node("Unsqueeze", each, one) for each in tables)
    middle, axis, step = g.constant([half]), g.constant([3]), one
    first = g.node("Slice", heads, g.constant([0]), middle, axis, step)
    second = g.node("Slice", heads, middle, g.constant([2**63 - 1]), axis, step)
    turned = g.node("Concat", g.node("Neg", second), first, axis=-1)
    return heads, g.node("Add", g.node("Mul", heads, cos), g.node("Mul", turned, sin))


def test_rule_1_heads_are_turned_as_rows() -> None:
    g = HandBuilt()
    model = g.model(y=rotary(g)[1])
    before = run(model, FEEDS)
    assert fuse_rotary_embedding(model)
    assert operators(model) == {
        "Cos": 1,
        "Sin": 1,
        "RotaryEmbedding": 1,
        "Reshape": 1,
        "Transpose": 1,
    }
    assert node_names(model) == {
        "rotary_emb/Cos",
        "rotary_emb/Sin",
        "layers.3.self_attn/RotaryEmbedding",
        "layers.3.self_attn/Reshape",
        "layers.3.self_attn/Transpose",
    }
    same_numbers(before, run(model, FEEDS))


def test_rule_1_what_else_takes_heads_keeps_them() -> None:
    g = HandBuilt()
    heads, turned = rotary(g)
    model = g.model(y=turned, plain=g.node("Neg", heads))
    before = run(model, FEEDS)
    assert fuse_rotary_embedding(model)
    assert operators(model)["Transpose"] == 2
    same_numbers(before, run(model, FEEDS))


@pytest.mark.parametrize("half", [4, 12])
def test_rule_2_a_part_of_the_head_stays(half: int) -> None:
    g = HandBuilt()
    unchanged(g.model(y=rotary(g, half=half)[1], infer=False))


def test_rule_2_scaled_cosines_stay() -> None:
    g = HandBuilt()
    unchanged(g.model(y=rotary(g, scaled=1.3)[1]))


def test_rule_2_sizes_that_are_not_constant_stay() -> None:
    g = HandBuilt()
    model = g.model(y=rotary(g)[1])
    shape = next(node for node in model.graph if node.op_type == "Reshape")
    shape.replace_input_with(1, g.input("shape", [4], ir.DataType.INT64))
    model.graph.inputs.append(g.inputs[-1])
    unchanged(model)


def unchanged(model: ir.Model) -> None:
    """The rewrite says that it did nothing, and did nothing."""
    before = operators(model)
    assert not fuse_rotary_embedding(model)
    assert operators(model) == before
