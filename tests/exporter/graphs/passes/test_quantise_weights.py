"""Products with integers in place of floats, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from hand_built import HandBuilt, operators, random, same_numbers
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.passes.quantise_weights import quantise_weights
from lvlm_export.graphs.quantise import dequantise, quantise
from lvlm_export.graphs.weight_use import WeightUse

WEIGHT = random(1, 6, 40)  # [out, in]
FEEDS = {"x": random(2, 3, 40)}


def float_graph(product: str, transposed: bool, **attributes: Any) -> ir.Model:
    """``x [3, 40]`` times the weight, with the numbers that ``FORMAT`` stands for put in later."""
    g = HandBuilt("layers.3.mlp.up_proj")
    x = g.input("x", [3, 40])
    weight = g.weight("w^T" if transposed else "w", WEIGHT.T.copy() if transposed else WEIGHT)
    bias = (g.weight("b", random(4, 6)),) if product == "Gemm" else ()
    return g.model(y=g.node(product, x, weight, *bias, **attributes))


def uses(transposed: bool = True) -> dict[str, WeightUse]:
    name = "w^T" if transposed else "w"
    return {name: WeightUse("w", torch.float32, transposed)}


def give(model: ir.Model, stored: dict[str, WeightUse], name: str) -> ir.Model:
    """Integers and scales as the weight file has them."""
    values, scales = quantise(torch.from_numpy(WEIGHT), name, torch.float32)
    for key, use in stored.items():
        found = scales if use.scales else values
        array = (found.t() if use.transposed else found).contiguous().numpy()
        tensor = ir.tensor(array, name=key)
        if not use.scales and name == "int4":
            tensor = ir.tensor(array, dtype=ir.DataType.INT4, name=key)
        model.graph.initializers[key].const_value = tensor
        model.graph.initializers[key].shape = tensor.shape
    return model


def exact(model: ir.Model) -> dict[str, Any]:
    """What the graph gives where ONNX Runtime does not round activations, too."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(["y"], session.run(None, FEEDS), strict=True))


def expected(name: str, bias: bool) -> dict[str, Any]:
    values, scales = quantise(torch.from_numpy(WEIGHT), name, torch.float32)
    product = FEEDS["x"] @ dequantise(values, scales, name).numpy().T
    return {"y": product + random(4, 6) if bias else product}


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rule_1_a_product_takes_integers_along_its_inputs(name: str) -> None:
    model, stored = float_graph("MatMul", True), uses()
    quantise_weights(model.graph, stored, {"w": name})
    assert operators(model) == {"DequantizeLinear": 1, "MatMul": 1}
    assert set(stored) == {f"w.{name}^T", f"w.{name}^T.scales"}
    assert [node.name for node in model.graph] == [
        "layers.3.mlp.up_proj/DequantizeLinear",
        "layers.3.mlp.up_proj/MatMul",
    ]
    same_numbers(expected(name, bias=False), exact(give(model, stored, name)))


@pytest.mark.parametrize(("name", "turned"), [("int8", 1), ("int4", 0)])
def test_rule_2_a_gemm_keeps_its_rows_where_a_scale_is_a_rows(name: str, turned: int) -> None:
    model, stored = float_graph("Gemm", False, transB=1), uses(transposed=False)
    quantise_weights(model.graph, stored, {"w": name})
    found = operators(model)
    assert (found["Transpose"], found["Add"], found["MatMul"]) == (turned, 1, 1)
    assert [use.transposed for use in stored.values()] == [not turned] * 2
    same_numbers(expected(name, bias=True), exact(give(model, stored, name)))


def test_rule_3_other_weights_stay() -> None:
    model, stored = float_graph("MatMul", True), uses()
    quantise_weights(model.graph, stored, {"another": "int8"})
    assert (operators(model), stored) == ({"MatMul": 1}, uses())


@pytest.mark.parametrize(
    ("product", "transposed", "attributes"),
    [("Gemm", False, {"transB": 1, "alpha": 0.5}), ("Add", True, {})],
)
def test_rule_3_another_use_of_such_a_weight_is_refused(
    product: str, transposed: bool, attributes: dict[str, Any]
) -> None:
    g = HandBuilt("layers.3.mlp.up_proj")
    name = "w^T" if transposed else "w"
    weight = g.weight(name, WEIGHT.T.copy() if transposed else WEIGHT)
    taken = g.input("x", [40, 6] if product == "Add" else [3, 40])
    model = g.model(y=g.node(product, taken, weight, **attributes))
    with pytest.raises(PassError, match=rf"{product}\): expected a product with w, found input 1"):
        quantise_weights(model.graph, uses(transposed), {"w": "int8"})
