"""Products with rounded activations: against the rule in plain numpy, on graphs built by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hand_built import HandBuilt, random, same_numbers
from lvlm_export.graphs.names import number_nodes
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.integers import multiply_in_integers, overflow_probe
from lvlm_runtime.graphs.reader import parse_model

PLACE = Path("decoder.1.onnx")
OUTPUTS = {"up": 6, "gate": 4, "head": 10}


def stored(
    seed: int, outputs: int, inputs: int = 40
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers ``[out, in]`` and a scale per output."""
    numbers = random(seed, outputs, inputs)
    scales = np.abs(numbers).max(axis=1) / np.float32(127)
    return np.rint(numbers / scales[:, None]).astype(np.int8), scales


def saved(model: ir.Model) -> bytes:
    """As an export writes it."""
    number_nodes(model.graph)
    return ir.to_proto(model).SerializeToString()


def graph(opset: int = 24) -> bytes:
    """Two products that take ``x [1, S, 40]``, one of them stored by rows, and one that takes a norm."""
    g = HandBuilt("layers.3")
    x = g.input("x", [1, "sequence", 40])
    made = {}
    for seed, (name, count) in enumerate(OUTPUTS.items()):
        values, scales = stored(seed, count)
        by_rows = name == "head"
        whole = g.node(
            "DequantizeLinear",
            g.weight(f"{name}.q", values if by_rows else values.T.copy()),
            g.weight(f"{name}.s", scales),
            axis=0 if by_rows else 1,
        )
        whole = g.node("Transpose", whole, perm=[1, 0]) if by_rows else whole
        made[name] = g.node("MatMul", g.node("Relu", x) if name == "gate" else x, whole)
    return saved(g.model(opset=opset, **made))


def numbers(data: bytes, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The graph's outputs in ONNX Runtime."""
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def by_the_rule(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Row by row: 127 steps to the largest magnitude, a product of whole numbers, both scales."""
    found = {}
    for seed, (name, count) in enumerate(OUTPUTS.items()):
        values, scales = stored(seed, count)
        rows = []
        for row in np.maximum(x, 0)[0] if name == "gate" else x[0]:
            largest = max(np.abs(row).max(), 1e-30)
            steps = np.rint(row / largest / np.float32(1 / 127)).astype(np.int64)
            rows.append(steps @ values.T.astype(np.int64) * (largest / 127) * scales)
        found[name] = np.stack(rows)[None].astype(np.float32)
    return found


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize("rows", [1, 5])
def test_rows_are_rounded_each_by_its_own_scale(rows: int, opset: int) -> None:
    data = graph(opset)
    x = random(9, 1, rows, 40)
    x[0, -1] *= 1000
    x[0, 0] *= rows == 1  # else a row of zeros
    quick = multiply_in_integers(data, PLACE)
    same_numbers(by_the_rule(x), numbers(quick, x))
    whole, rounded = numbers(data, x), numbers(quick, x)
    for name, expected in whole.items():
        apart = np.abs(rounded[name] - expected).max(axis=-1)
        # A large row takes nothing off the others.
        assert (apart <= 0.02 * np.abs(expected).max(axis=-1)).all()
    assert any((rounded[name] != whole[name]).any() for name in whole)


def test_what_products_share_is_rounded_once() -> None:
    changed = parse_model(multiply_in_integers(graph(), PLACE), PLACE)
    kinds = [node.op_type for node in changed.graph.nodes]
    assert [kinds.count(kind) for kind in ("QuantizeLinear", "MatMulIntegerToFloat")] == [2, 3]
    assert not {"DequantizeLinear", "MatMul"} & set(kinds)
    assert changed.opsets == {"": 24, "com.microsoft": 1}


def unlike(name: str) -> bytes:
    """A graph with a product that is not of the pattern."""
    g = HandBuilt("layers.3")
    half = name == "of float16"
    x = g.input("x", [1, "sequence", 64], ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    values, scales = stored(0, 32, 64)
    if name == "of blocks":
        scales = np.tile(scales, (2, 1))
    more = {"axis": 0, "block_size": 32} if name == "of blocks" else {"axis": 1}
    kept = g.weight("s", scales.astype(np.float16) if half else scales)
    whole = g.node("DequantizeLinear", g.weight("q", values.T.copy()), kept, **more)
    outputs = {"y": g.node("MatMul", x, whole)}
    if name == "that others take":
        outputs["z"] = g.node("Add", x, g.node("Transpose", whole, perm=[1, 0]))
    if name == "that is given out":
        outputs["w"] = whole
    return saved(g.model(**outputs))


@pytest.mark.parametrize(
    "name", ["of float16", "of blocks", "that others take", "that is given out"]
)
def test_a_weight_of_another_kind_stays(name: str) -> None:
    data = unlike(name)
    assert multiply_in_integers(data, PLACE) is data


def test_a_graph_without_integers_is_not_even_read() -> None:
    assert multiply_in_integers(b"\x08", PLACE) == b"\x08"


def test_what_is_no_graph_is_one_line() -> None:
    with pytest.raises(LvlmError, match=r"decoder\.1\.onnx is not an ONNX file"):
        multiply_in_integers(b"\x3aDequantizeLinear", PLACE)


def test_the_probe_is_a_product_that_onnxruntime_runs() -> None:
    data, expected = overflow_probe()
    (found,) = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {})
    # Where a CPU has no VNNI, each pair of products stops at 32,767.
    assert (found.shape, int(found.max())) in (((1, 64), expected), ((1, 64), 32 * 32767))
