"""Convolutions of bfloat16, on graphs built by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from hand_built import FLOAT, HandBuilt, node_names, operators, random, run, same_numbers
from lvlm_export.graphs.passes.convolve_in_float32 import convolve_in_float32
from lvlm_export.graphs.passes.errors import PassError

FEEDS = {"pixel_values": random(1, 1, 3, 8, 8)}


def embedding(dtype: ir.DataType) -> ir.Model:
    """Patches of 4 x 4, their weight and bias of a type; pixels and patches are float32."""
    g = HandBuilt("embeddings.patch_embedding")
    given = g.input("pixel_values", ["tiles", 3, 8, 8]), g.weight("w", random(2, 6, 3, 4, 4))
    values = [*given, g.weight("b", random(3, 6))]
    if dtype != FLOAT:
        values = [g.node("Cast", value, to=dtype) for value in values]
    patches = g.node("Conv", *values, strides=[4, 4])
    return g.model(y=patches if dtype == FLOAT else g.node("Cast", patches, to=FLOAT))


def test_rule_1_between_casts() -> None:
    model = embedding(ir.DataType.BFLOAT16)
    exact = run(embedding(FLOAT), FEEDS)
    assert convolve_in_float32(model)
    node = next(node for node in model.graph if node.op_type == "Conv")
    assert [each.producer().attributes["to"].as_int() for each in node.inputs] == [FLOAT] * 3
    [behind] = node.outputs[0].consumers()
    assert behind.attributes["to"].as_int() == ir.DataType.BFLOAT16
    assert operators(model) == {"Conv": 1, "Cast": 8}
    assert node_names(model) == {
        "embeddings.patch_embedding/Conv",
        "embeddings.patch_embedding/Cast",
    }
    # bfloat16 has 8 bits: of the weights, the pixels and the answer.
    same_numbers(exact, run(model, FEEDS), limit=2e-2)


@pytest.mark.parametrize("dtype", [FLOAT, ir.DataType.FLOAT16])
def test_rule_2_other_types_stay(dtype: ir.DataType) -> None:
    model = embedding(dtype)
    before = operators(model)
    assert not convolve_in_float32(model)
    assert operators(model) == before


def test_a_type_that_is_not_known_is_refused() -> None:
    model = embedding(FLOAT)
    model.graph.inputs[0].type = None
    message = (
        r"convolve_in_float32: node embeddings\.patch_embedding/Conv \(Conv\): expected input 0 of a"
        " known element type, found none; the graph was traced with transformers"
    )
    with pytest.raises(PassError, match=message):
        convolve_in_float32(model)
