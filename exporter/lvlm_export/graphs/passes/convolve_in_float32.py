"""Convolutions of bfloat16 where the older opset has none."""

from __future__ import annotations

import onnx_ir as ir

from lvlm_export.graphs.names import scope_of
from lvlm_export.graphs.passes._shared import Builder, element_type

NAME = "convolve_in_float32"


def convolve_in_float32(model: ir.Model) -> bool:
    """``Conv`` on bfloat16, which came with opset 22, between casts; the patch embedding is one.

    1. Every input is cast to float32, the result back to bfloat16.
    2. A ``Conv`` of another element type stays as it is.

    Returns:
        Whether there was one.

    Raises:
        PassError: The element type of a ``Conv`` is not known.
    """
    changed = False
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        # 2.
        if element_type(NAME, node) != ir.DataType.BFLOAT16:
            continue
        # 1.
        op = Builder(scope_of(node))
        for index, value in enumerate(node.inputs):
            node.replace_input_with(index, op.Cast(value, to=ir.DataType.FLOAT))
        model.graph.insert_before(node, op.nodes)
        out = node.outputs[0]
        name = f"{scope_of(node)}/Cast"
        narrow = ir.node("Cast", [out], {"to": ir.DataType.BFLOAT16}, name=name)
        narrow.outputs[0].shape, narrow.outputs[0].type = out.shape, out.type
        ir.convenience.replace_all_uses_with(out, narrow.outputs[0])
        narrow.replace_input_with(0, out)
        model.graph.insert_after(node, narrow)
        out.type = ir.TensorType(ir.DataType.FLOAT)
        changed = True
    return changed
