"""Weights that are stored as integers: ``DequantizeLinear`` before the product, for every target.

``uses`` says how the graph wants each stored tensor, by initialiser, and is updated. The form is
standard ONNX: TensorRT multiplies with it as it is, and ONNX Runtime makes ``MatMulNBits`` of it when
it loads the graph (``DQMatMulToMatMulNBits`` of its optimiser, which wants blocks on axis 0 and no
other user of the product's weight).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from lvlm_export.graphs.names import scope_of
from lvlm_export.graphs.passes._shared import Builder, maker
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.weight_use import WeightUse
from lvlm_export.plan.weight_formats import FORMATS

NAME = "quantise_weights"
TYPES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


def quantise_weights(
    graph: ir.Graph, uses: dict[str, WeightUse], formats: Mapping[str, str]
) -> None:
    """Products with weights of ``formats`` take them from integers and scales.

    1. ``MatMul(x, W^T)`` becomes ``MatMul(x, DequantizeLinear(q^T, scales))``: blocks lie along
       the inputs, axis 0, and a scale per output along axis 1.
    2. ``Gemm(x, W, transB=1)`` with a scale per row of ``W`` keeps the rows, which may be the token
       table's: ``MatMul(x, Transpose(DequantizeLinear(q, scales)))``. With blocks it is as 1. Its
       bias becomes an ``Add``.
    3. Nothing else takes such a weight, and the float initialiser leaves the graph and ``uses``.

    Raises:
        PassError: A weight of ``formats`` goes into something else.
    """
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            use = None if value is None else uses.get(value.name or "")
            if use is None or use.format is not None or use.name not in formats:
                continue
            # 3.
            if index != 1 or not _is_product(node, use):
                raise PassError(NAME, node, f"a product with {use.name}", f"input {index}")
            _replace(graph, uses, node, use, formats[use.name])
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        uses.pop(name, None)
        del graph.initializers[name]


def _is_product(node: ir.Node, use: WeightUse) -> bool:
    if node.op_type == "MatMul":
        return use.transposed
    found = {name: each.value for name, each in node.attributes.items()}
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **found} == wanted
    return node.op_type == "Gemm" and plain and not use.transposed


def _replace(
    graph: ir.Graph, uses: dict[str, WeightUse], node: ir.Node, use: WeightUse, name: str
) -> None:
    weight, block = node.inputs[1], FORMATS[name].block
    if weight is None or weight.type is None:
        raise PassError(NAME, node, "a weight of a known type", maker(weight))
    # 2.
    by_rows = node.op_type == "Gemm" and block is None
    stored = replace(use, transposed=not by_rows, format=name)
    called = f"{str(weight.name).removesuffix('^T')}.{name}{'' if by_rows else '^T'}"
    integers = ir.TensorType(TYPES[FORMATS[name].bits])
    values = [
        _initializer(graph, uses, called, stored, integers),
        _initializer(graph, uses, f"{called}.scales", replace(stored, scales=True), weight.type),
    ]
    op = Builder(scope_of(node))
    # 1.
    if block is not None:
        whole = op.DequantizeLinear(*values, axis=0, block_size=block)
    else:
        whole = op.DequantizeLinear(*values, axis=0 if by_rows else 1)
    whole = op.Transpose(whole, perm=[1, 0]) if by_rows else whole
    product = op.MatMul(node.inputs[0], whole)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        product = op.Add(product, node.inputs[2])
    product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, op.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], product, replace_graph_outputs=True)
    if node.outputs[0].name is not None:
        product.name, node.outputs[0].name = node.outputs[0].name, f"{node.outputs[0].name}.before"
    graph.remove(node, safe=True)


def _initializer(
    graph: ir.Graph, uses: dict[str, WeightUse], name: str, use: WeightUse, type: ir.TypeProtocol
) -> ir.Value:
    if name not in graph.initializers:
        graph.initializers[name] = ir.Value(name=name, type=type)
        uses[name] = use
    return graph.initializers[name]
