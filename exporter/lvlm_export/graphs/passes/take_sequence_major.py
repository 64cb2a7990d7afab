"""An input that lies row by row, as the cache of the decomposed dialect does."""

from __future__ import annotations

import onnx_ir as ir

from lvlm_export.graphs.passes._shared import SWAP, graph_input, swap_heads_and_rows
from lvlm_export.graphs.passes.errors import PassError

NAME = "take_sequence_major"


def take_sequence_major(model: ir.Model, name: str = "key") -> bool:
    """Turn an input ``[1, H, N, D]`` into ``[1, N, H, D]``, as the cache of this dialect lies.

    1. The input changes its shape.
    2. A ``Transpose`` turns it back for those that take it; without any there is none.

    Returns:
        True: there is always something to do.

    Raises:
        PassError: There is no such input, or it has not four axes.
    """
    graph = model.graph
    value = graph_input(NAME, graph, name)
    if value.shape is None or len(value.shape) != 4:
        raise PassError(NAME, graph, f"input {name} of four axes", f"shape {value.shape}")
    users = [(usage.node, usage.idx) for usage in value.uses()]
    # 1.
    swap_heads_and_rows(value)
    if not users:
        return True
    # 2.
    node = ir.node("Transpose", [value], {"perm": SWAP}, name=f"{name}/Transpose")
    graph.insert_before(graph[0], node)
    for user, index in users:
        user.replace_input_with(index, node.outputs[0])
    return True
