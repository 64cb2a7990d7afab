"""What a rewrite raises when the traced graph is not what it expects."""

from __future__ import annotations

import onnx_ir as ir

from lvlm_export.plan.versions import TESTED_TRANSFORMERS, versions
from lvlm_runtime.errors import LvlmError


class PassError(LvlmError):
    """A rewrite found something else than the tracer gave when the rewrite was written.

    The attention, norm and rotary modules that are traced are those of the installed transformers,
    so its version stands in the message.

    Args:
        rewrite: Name of the pass.
        where: The node at fault, or the graph where no node is.
        expected: What the pass needs there.
        found: What is there.
        remedy: What to do; by default, which transformers to install.

    Example:
        >>> import onnx_ir as ir
        >>> node = ir.node("Attention", [], name="layers.0/Attention")
        >>> str(PassError("group_query", node, "a scale", "none", "report it"))
        'group_query: node layers.0/Attention (Attention): expected a scale, found none; report it'
    """

    def __init__(
        self,
        rewrite: str,
        where: ir.Node | ir.Graph,
        expected: str,
        found: str,
        remedy: str | None = None,
    ) -> None:
        super().__init__(
            f"{rewrite}: {_label(where)}: expected {expected}, found {found};"
            f" {remedy or _other_transformers()}"
        )


def _label(where: ir.Node | ir.Graph) -> str:
    if isinstance(where, ir.Graph):
        return f"graph {where.name or '(no name)'}"
    return f"node {where.name or f'of {where.outputs[0].name}'} ({where.op_type})"


def _other_transformers() -> str:
    installed = versions()["transformers"]
    traced = f"the graph was traced with transformers {installed}"
    if installed == TESTED_TRANSFORMERS:
        return f"{traced}, the tested version: report it"
    return f"{traced}, tested is {TESTED_TRANSFORMERS}: install that version or report it"
