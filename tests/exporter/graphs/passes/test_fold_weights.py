"""What a graph does to a weight becomes the way it is stored, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from hand_built import INT64, HandBuilt, operators, random, run, same_numbers
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.passes.fold_weights import fold_weight_slices, fold_weight_transposes
from lvlm_export.graphs.weight_use import WeightUse

WEIGHT = random(1, 6, 4)
FEEDS = {"x": random(2, 3, 4)}
END = 2**63 - 1


def uses() -> dict[str, WeightUse]:
    return {"w": WeightUse("w", torch.float32)}


def give(model: ir.Model, **arrays: NDArray[Any]) -> ir.Model:
    """Numbers for folded weights, as the weight file has them."""
    assert arrays.keys() == {str(name) for name in model.graph.initializers}
    for name, array in arrays.items():
        assert list(model.graph.initializers[name].shape) == list(array.shape)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def test_transposes_rule_1_two_linear_maps_share_the_stored_transpose() -> None:
    g = HandBuilt()
    x, weight = g.input("x", [3, 4]), g.weight("w", WEIGHT)
    first = g.node("MatMul", x, g.node("Transpose", weight, perm=[1, 0]))
    second = g.node("MatMul", x, g.node("Transpose", weight, perm=[1, 0]))
    model, stored = g.model(y=first, z=second), uses()
    before = run(model, FEEDS)
    fold_weight_transposes(model.graph, stored)
    assert operators(model) == {"MatMul": 2}
    assert stored == {"w^T": WeightUse("w", torch.float32, transposed=True)}
    same_numbers(before, run(give(model, **{"w^T": WEIGHT.T.copy()}), FEEDS))


def test_transposes_rule_1_what_also_takes_the_weight_as_it_is_keeps_it() -> None:
    g = HandBuilt()
    x, weight = g.input("x", [3, 4]), g.weight("w", WEIGHT)
    product = g.node("MatMul", x, g.node("Transpose", weight, perm=[1, 0]))
    model, stored = g.model(y=product, z=g.node("Neg", weight)), uses()
    fold_weight_transposes(model.graph, stored)
    assert stored.keys() == {"w", "w^T"}


def test_transposes_rule_1_other_permutations_and_other_values_stay() -> None:
    g = HandBuilt()
    weight, other = g.weight("w", random(1, 6, 1, 4)), g.input("x", [3, 4])
    turned = g.node("Transpose", weight, perm=[1, 2, 0]), g.node("Transpose", other, perm=[1, 0])
    model, stored = g.model(y=turned[0], z=turned[1]), uses()
    fold_weight_transposes(model.graph, stored)
    assert (operators(model), stored) == ({"Transpose": 2}, uses())


def test_transposes_rule_2_what_nothing_takes_leaves_the_graph() -> None:
    g = HandBuilt()
    g.weight("w", WEIGHT)
    g.constant([7])
    model, stored = g.model(y=g.node("Neg", g.input("x", [3, 4]))), uses()
    fold_weight_transposes(model.graph, stored)
    assert (dict(model.graph.initializers), stored) == ({}, {})


def test_transposes_of_a_shape_that_is_not_known_are_refused() -> None:
    g = HandBuilt("layers.3.mlp.up_proj")
    weight = g.weight("w", WEIGHT)
    model = g.model(infer=False, y=g.node("Transpose", weight, perm=[1, 0]))
    weight.shape = None
    message = (
        r"fold_weight_transposes: node layers\.3\.mlp\.up_proj/Transpose \(Transpose\): expected"
        " weight w of a known shape, found none; the graph was traced with transformers"
    )
    with pytest.raises(PassError, match=message):
        fold_weight_transposes(model.graph, uses())


def sliced(*bounds: Any) -> ir.Model:
    """A head of some rows of the weight."""
    g = HandBuilt("lm_head.1")
    x, weight = g.input("x", [3, 4]), g.weight("w", WEIGHT)
    given = [
        each if isinstance(each, ir.Value) else g.constant(np.atleast_1d(each)) for each in bounds
    ]
    rows = g.node("Slice", weight, *given)
    return g.model(infer=False, y=g.node("Gemm", x, rows, transB=1))


@pytest.mark.parametrize(
    ("bounds", "rows"),
    [((0, 2, 0, 1), (0, 2)), ((2, 5, 0), (2, 5)), ((4, END, 0, 1), (4, 6)), ((3, 6), (3, 6))],
)
def test_slices_rule_1_some_rows(bounds: tuple[int, ...], rows: tuple[int, int]) -> None:
    model, stored = sliced(*bounds), uses()
    before = run(model, FEEDS)
    fold_weight_slices(model.graph, stored)
    fold_weight_transposes(model.graph, stored)  # takes what nobody uses any more
    name = f"w[{rows[0]}:{rows[1]}]"
    assert operators(model) == {"Gemm": 1}
    assert stored == {name: WeightUse("w", torch.float32, rows=rows)}
    same_numbers(before, run(give(model, **{name: WEIGHT[slice(*rows)]}), FEEDS))


def test_slices_rule_1_the_same_rows_twice_are_one_piece() -> None:
    g = HandBuilt()
    weight, bounds = g.weight("w", WEIGHT), [g.constant([each]) for each in (1, 3, 0, 1)]
    first, second = (g.node("Slice", weight, *bounds) for _ in range(2))
    model, stored = g.model(y=g.node("Add", first, second)), uses()
    before = run(model, {})
    fold_weight_slices(model.graph, stored)
    fold_weight_transposes(model.graph, stored)
    assert stored.keys() == {"w[1:3]"}
    same_numbers(before, run(give(model, **{"w[1:3]": WEIGHT[1:3]}), {}))


def test_slices_of_other_values_stay() -> None:
    g = HandBuilt()
    x = g.input("x", [3, 4])
    model = g.model(y=g.node("Slice", x, *(g.constant([each]) for each in (0, 2, 0, 1))))
    fold_weight_slices(model.graph, uses())
    assert operators(model) == {"Slice": 1}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 2, 1, 1), "consecutive rows of axis 0, found axis 1, step 1"),
        ((0, 6, 0, 2), "consecutive rows of axis 0, found axis 0, step 2"),
        ((4, 4, 0, 1), "some of the rows 0 to 6, found 4 to 4"),
        ((-2, END, 0, 1), f"some of the rows 0 to 6, found -2 to {END}"),
        (([0, 1], [2, 3], [0, 1], [1, 1]), r"one constant per bound, found value constant_\d"),
        ((ir.val("first", INT64, [1]), 2, 0), "one constant per bound, found value first"),
    ],
)
def test_slices_of_another_kind_are_refused(bounds: tuple[Any, ...], message: str) -> None:
    model = sliced(*bounds)
    node = r"fold_weight_slices: node lm_head\.1/Slice \(Slice\): expected "
    with pytest.raises(PassError, match=f"{node}{message}; the graph was traced with"):
        fold_weight_slices(model.graph, uses())


def test_slices_of_a_shape_that_is_not_known_are_refused() -> None:
    model = sliced(0, 2, 0, 1)
    model.graph.initializers["w"].shape = None
    with pytest.raises(
        PassError, match="expected weight w of a known shape, found None; the graph"
    ):
        fold_weight_slices(model.graph, uses())
