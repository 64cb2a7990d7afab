"""Small graphs built by hand, as the tracer would give them, and their numbers in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from lvlm_export.graphs.names import number_nodes

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
SWAP = [0, 2, 1, 3]
SCALE = 0.25


class HandBuilt:
    """A graph while it is built: ``g.node("Mul", x, w)`` gives the value that the node makes.

    Args:
        scope: What its nodes are named after, as ``name_nodes`` does.
    """

    def __init__(self, scope: str = "layers.3") -> None:
        self.scope = scope
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def input(self, name: str, shape: list[int | str], dtype: ir.DataType = FLOAT) -> ir.Value:
        """An input of the graph."""
        self.inputs.append(ir.val(name, dtype, shape))
        return self.inputs[-1]

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initialiser, with its numbers."""
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.constants.append(value)
        return value

    def constant(self, number: Any, dtype: Any = np.int64) -> ir.Value:
        """An initialiser without a name of its own: the tracer's way with small constants."""
        return self.weight(f"constant_{len(self.constants)}", np.array(number, dtype))

    def node(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """A node with one output."""
        name = f"{self.scope}/{op_type}"
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, name=name))
        return self.nodes[-1].outputs[0]

    def model(self, infer: bool = True, opset: int = 24, **outputs: ir.Value) -> ir.Model:
        """The graph with named outputs, every value's shape and type inferred unless not wanted."""
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            self.inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": opset},
            name="decoder.1",
        )
        model = ir.Model(graph, ir_version=10)
        if infer:
            ShapeInferencePass()(model)
        return model

    # Pieces that several rewrites meet.

    def heads(self, rows: ir.Value, count: int, size: int) -> ir.Value:
        """Rows ``[1, S, H*D]`` to heads ``[1, H, S, D]``."""
        split = self.node("Reshape", rows, self.constant([1, -1, count, size]), allowzero=1)
        return self.node("Transpose", split, perm=SWAP)

    def written(self, cache: ir.Value, new: ir.Value) -> ir.Value:
        """The cache with new rows in it, at the input ``write_index``."""
        index = next(value for value in self.inputs if value.name == "write_index")
        return self.node("TensorScatter", cache, new, index, axis=2, mode="linear")

    def attention(
        self,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        length: ir.Value,
        mask: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Attention over caches of which ``length`` rows are filled, causal by itself or a mask."""
        given = {"scale": SCALE, **({} if mask is not None else {"is_causal": 1})} | attributes
        return self.node("Attention", query, key, value, mask, None, None, length, **given)

    def sized_mask(self, rows: ir.Value) -> ir.Value:
        """``[1, 1, S, N]`` of an input ``size_bias [1, N]`` where a new row may look, by index."""
        row = self.input("size_bias", [1, "cache"])
        self.input("position_ids", [1, "sequence"], INT64)
        index = next(value for value in self.inputs if value.name == "write_index")
        zero, one, axis = self.constant(0), self.constant(1), self.constant([0])
        count = self.node("Squeeze", self.node("Shape", rows, start=1, end=2), axis)
        room = self.node("Squeeze", self.node("Shape", row, start=1, end=2), axis)
        new = self.node("Add", self.node("Range", zero, count, one), index)
        columns = self.node("Range", zero, room, one)
        seen = self.node("LessOrEqual", columns, self.node("Unsqueeze", new, self.constant([1])))
        mask = self.node("Where", seen, row, self.constant(np.finfo(np.float32).min, np.float32))
        return self.node("Unsqueeze", mask, self.constant([0, 1]))

    def seen_mask(self, cache: ir.Value) -> ir.Value:
        """``[1, 1, S, N]`` where a new row may look by an input ``seen_to [S]``."""
        seen_to = self.input("seen_to", ["sequence"], INT64)
        zero, one, axis = self.constant(0), self.constant(1), self.constant([0])
        room = self.node("Squeeze", self.node("Shape", cache, start=2, end=3), axis)
        columns = self.node("Range", zero, room, one)
        seen = self.node("Less", columns, self.node("Unsqueeze", seen_to, self.constant([1])))
        shown, hidden = np.float32(0), np.finfo(np.float32).min
        values = (self.constant(each, np.float32) for each in (shown, hidden))
        return self.node("Unsqueeze", self.node("Where", seen, *values), self.constant([0, 1]))

    def joined(self, heads: ir.Value, width: int) -> ir.Value:
        """Heads ``[1, H, S, D]`` to rows ``[1, S, H*D]``."""
        rows = self.node("Transpose", heads, perm=SWAP)
        return self.node("Reshape", rows, self.constant([1, -1, width]), allowzero=1)


def run(model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A model's outputs on a CPU, by name; its nodes are numbered first, as an export does."""
    number_nodes(model.graph)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def same_numbers(
    before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], limit: float = 1e-5
) -> None:
    """Both have the same outputs, up to ``limit`` of the largest number."""
    assert before.keys() == after.keys()
    for name, expected in before.items():
        error = np.abs(after[name] - expected).max() / np.abs(expected).max()
        assert error <= limit, f"{name} is off by {error:.2g}"


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator stands in a graph."""
    return Counter(node.op_type for node in model.graph)


def node_names(model: ir.Model) -> set[str]:
    """Names of a graph's nodes."""
    return {str(node.name) for node in model.graph}


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    """Numbers around zero."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
