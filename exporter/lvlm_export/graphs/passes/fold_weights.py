"""What a graph does to a weight becomes the way the weight is stored; for every target.

``uses`` says how the graph wants each stored tensor, by initialiser, and is updated.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from lvlm_export.graphs.passes._shared import constant, maker, permutation
from lvlm_export.graphs.passes.errors import PassError
from lvlm_export.graphs.weight_use import WeightUse

SLICES = "fold_weight_slices"
TRANSPOSES = "fold_weight_transposes"


def fold_weight_transposes(graph: ir.Graph, uses: dict[str, WeightUse]) -> None:
    """Store ``W^T`` where the graph transposes a weight, and drop the ``Transpose``.

    ``torch`` keeps linear weights ``[out, in]`` and the tracer emits ``MatMul(x, Transpose(W))``;
    left there, every load of the graph would copy all weights.

    1. ``Transpose(W, perm=[1, 0])`` becomes the initialiser ``W^T``; a second one shares it.
    2. An initialiser that nothing takes any more leaves the graph and ``uses``.

    Raises:
        PassError: The shape of a transposed weight is not known.
    """
    for node in list(graph):
        weight = node.inputs[0] if permutation(node) == [1, 0] else None
        use = None if weight is None else uses.get(weight.name or "")
        if weight is None or use is None:
            continue
        # 1.
        if weight.shape is None:
            raise PassError(TRANSPOSES, node, f"weight {weight.name} of a known shape", "none")
        name = f"{weight.name}^T"
        if name not in graph.initializers:
            shape = ir.Shape(list(weight.shape)[::-1])
            graph.initializers[name] = ir.Value(name=name, shape=shape, type=weight.type)
            uses[name] = replace(use, transposed=True)
        node.outputs[0].replace_all_uses_with(graph.initializers[name])
        graph.remove(node, safe=True)
    # 2.
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        uses.pop(name, None)
        del graph.initializers[name]


def fold_weight_slices(graph: ir.Graph, uses: dict[str, WeightUse]) -> None:
    """Point at rows of a stored weight where the graph slices it, and drop the ``Slice``.

    A row range of ``[out, in]`` is one piece of the weight file, so the parts of a split LM head
    take no bytes beyond the whole.

    1. ``Slice(W, [first], [last], [0])`` becomes the initialiser ``W[first:last]``; an end beyond
       the last row, which the tracer writes for an open range, is the last row. A second one of the
       same rows shares it.

    Raises:
        PassError: A weight is sliced otherwise: bounds that are not constants or not in it, another
            axis, steps, several axes.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Slice" else None
        use = None if weight is None else uses.get(weight.name or "")
        if weight is None or use is None:
            continue
        # 1.
        first, last = _rows(node, weight)
        name = f"{weight.name}[{first}:{last}]"
        if name not in graph.initializers:
            shape = ir.Shape([last - first, *list(weight.shape)[1:]])
            graph.initializers[name] = ir.Value(name=name, shape=shape, type=weight.type)
            uses[name] = replace(use, rows=(first, last))
        node.outputs[0].replace_all_uses_with(graph.initializers[name])
        graph.remove(node, safe=True)


def _rows(node: ir.Node, weight: ir.Value) -> tuple[int, int]:
    """First row and the one behind the last of a slice of a weight."""
    whole = None if weight.shape is None else weight.shape[0]
    if not isinstance(whole, int):
        raise PassError(SLICES, node, f"weight {weight.name} of a known shape", str(weight.shape))
    bounds = [constant(value) for value in node.inputs[1:]]
    for value, bound in zip(node.inputs[1:], bounds, strict=True):
        if bound is None or bound.size != 1:
            raise PassError(SLICES, node, "one constant per bound", maker(value))
    given = [int(bound.item()) for bound in bounds]
    # Axis and step may be left out.
    first, last, axis, step = (*given, *(0, 1)[len(given) - 2 :])
    if (axis, step) != (0, 1):
        raise PassError(SLICES, node, "consecutive rows of axis 0", f"axis {axis}, step {step}")
    if not 0 <= first < min(last, whole):
        raise PassError(SLICES, node, f"some of the rows 0 to {whole}", f"{first} to {last}")
    return first, min(last, whole)
