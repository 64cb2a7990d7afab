"""Rewrites of the traced graph, one function each."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from lvlm_export.weights import Placement


def fold_weight_transposes(graph: ir.Graph, placements: dict[str, Placement]) -> None:
    """Store ``W^T`` where the graph transposes a weight, and drop the ``Transpose``.

    ``torch`` keeps linear weights ``[out, in]`` and the tracer emits ``MatMul(x, Transpose(W))``;
    left there, every load of the graph would copy all weights. ``placements`` is updated.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        weight = node.inputs[0]
        placement = placements.get(weight.name or "")
        if placement is None or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        folded = _folded_value(graph, weight, placement, placements)
        node.outputs[0].replace_all_uses_with(folded)
        graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        placements.pop(name, None)
        del graph.initializers[name]


def _folded_value(
    graph: ir.Graph, weight: ir.Value, placement: Placement, placements: dict[str, Placement]
) -> ir.Value:
    name = f"{weight.name}^T"
    if name not in graph.initializers:
        assert weight.shape is not None
        folded = ir.Value(
            name=name, shape=ir.Shape(list(weight.shape)[::-1]), type=weight.type
        )
        graph.initializers[name] = folded
        placements[name] = replace(placement, transposed=True)
    return graph.initializers[name]
