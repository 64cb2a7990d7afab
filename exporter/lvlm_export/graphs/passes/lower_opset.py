"""The graph as one of opset 20, the newest that TensorRT before 10.15 takes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from lvlm_export.graphs.passes.errors import PassError

NAME = "lower_opset"
OPSET = 20
IR_VERSION = 9  # of ONNX 1.15, which brought opset 20
# Operators whose versions 21 to 24 only take more element types, by the ONNX changelog.
_WIDENED = """
    Cast Constant ConstantOfShape Conv Cos EyeLike Flatten Identity Pad Reshape Shape Sin Size Squeeze
    TopK Transpose Unsqueeze
"""
WIDENED = frozenset(_WIDENED.split())
REMEDY = f"write it in operators of opset {OPSET} or build with --dialect opset24"


def lower_opset(model: ir.Model) -> bool:
    """Declare opset 20, after a look at every node.

    1. The node is of ONNX's own domain.
    2. Its operator exists in opset 20.
    3. It is of the same version there, or of one that only takes fewer element types. No operator
       that has a subgraph is.
    4. It has no attribute that came later.

    Returns:
        True: the model changes its opset.

    Raises:
        PassError: A node for which one of these does not hold; names it.
    """
    for node in model.graph:
        found = _newer(node, model.opset_imports[""])
        if found is not None:
            raise PassError(NAME, node, f"an operator of opset {OPSET}", found, REMEDY)
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    return True


def _newer(node: ir.Node, traced: int) -> str | None:
    """What a node has that the older opset has not; None where it has nothing."""
    # 1.
    if node.domain not in ("", "ai.onnx"):
        return f"one of {node.domain}"
    # 2.
    try:
        old = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return "one that does not exist there"
    # 3.
    new = onnx.defs.get_schema(node.op_type, traced)
    if old.since_version != new.since_version and node.op_type not in WIDENED:
        return f"version {new.since_version}, which is not known to mean the same there"
    # 4.
    extra = set(node.attributes) - set(old.attributes)
    return f"attribute {min(extra)}, which does not exist there" if extra else None
