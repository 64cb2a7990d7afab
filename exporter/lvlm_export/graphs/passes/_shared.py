"""What several rewrites need: nodes on a tape, names for them, and questions about values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape
from onnxscript.rewriter import pattern

from lvlm_export.graphs.names import scope_of
from lvlm_export.graphs.passes.errors import PassError
from lvlm_runtime.bundle.manifest import SEEN_FROM, SEEN_TO, SIZE_BIAS

SWAP = [0, 2, 1, 3]  # heads and rows
# Inputs of an ``Attention`` over a cache, of which the last is the filled length.
CACHED_INPUTS = 7


class Builder(Tape):  # type: ignore[misc]
    """Nodes on a tape, an operator per method: ``op.Concat(a, b, axis=1)``.

    Args:
        scope: What the nodes are named after, ``scope/Concat``; ``scope_of`` the node they replace.
    """

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        name = f"{self.scope}/{op_type}"
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes, name=name)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant of a number or a list of them, integers by default."""
        return self.Constant(value=ir.tensor(np.array(value, dtype)))


def apply(rule: pattern.RewriteRule, model: ir.Model) -> bool:
    """Rewrite everything that a pattern matches; whether there was something."""
    if not pattern.RewriteRuleSet([rule]).apply_to_model(model):
        return False
    RemoveUnusedNodesPass()(model)
    return True


def name_after(replaced: ir.Node, *values: ir.Value) -> None:
    """Name the nodes that make some values after the one that they stand for."""
    for value in values:
        node = value.producer()
        node.name = f"{scope_of(replaced)}/{node.op_type}"


def constant(value: ir.Value | None) -> Any:
    """The numpy value of a constant; None for anything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def maker(value: ir.Value | None) -> str:
    """What makes a value, for a message: an operator, an input of the graph, or nothing."""
    if value is None:
        return "nothing"
    node = value.producer()
    return f"value {value.name}" if node is None else str(node.op_type)


def producer(rewrite: str, node: ir.Node, index: int, op_type: str) -> ir.Node:
    """The node that makes an input of ``node``.

    Raises:
        PassError: There is none, or it is another operator than ``op_type``.
    """
    value = node.inputs[index]
    made_by = None if value is None else value.producer()
    if made_by is None or made_by.op_type != op_type:
        raise PassError(rewrite, node, f"input {index} from {op_type}", maker(value))
    return made_by


def element_type(rewrite: str, node: ir.Node) -> ir.DataType:
    """Element type of a node's first input.

    Raises:
        PassError: It is not known.
    """
    value = node.inputs[0]
    if value is None or value.dtype is None:
        raise PassError(rewrite, node, "input 0 of a known element type", "none")
    return value.dtype


def sizes(rewrite: str, node: ir.Node, value: ir.Value | None, *axes: int) -> tuple[int, ...]:
    """Constant sizes of a four-dimensional value that ``node`` takes or makes.

    Raises:
        PassError: It has another rank, or one of these sizes is not a constant.
    """
    shape = None if value is None else value.shape
    found = [] if shape is None or len(shape) != 4 else [shape[axis] for axis in axes]
    if not found or not all(isinstance(size, int) for size in found):
        name = "an input" if value is None else value.name
        wanted = " and ".join(map(str, axes))
        raise PassError(
            rewrite, node, f"{name} of four axes with constant sizes on {wanted}", f"shape {shape}"
        )
    return tuple(found)


def permutation(node: ir.Node) -> list[int] | None:
    """The axes of a ``Transpose`` in their new order; None for another operator or no order."""
    order = node.attributes.get("perm") if node.op_type == "Transpose" else None
    return None if order is None else list(order.as_ints())


def over_cache(node: ir.Node) -> bool:
    """Whether a node is an ``Attention`` with a filled length."""
    return node.op_type == "Attention" and len(node.inputs) == CACHED_INPUTS


@dataclass(frozen=True)
class RowMask:
    """What an ``Attention`` over a cache adds to its scores, by the inputs it is made of.

    Attributes:
        size_bias: ``[1, N]``, added for every row of the cache; None for nothing.
        seen_to: ``[S]``, how many rows each new token sees; None for those before it.
        seen_from: ``[S]``, the first of them; None for the first of all.
    """

    size_bias: ir.Value | None = None
    seen_to: ir.Value | None = None
    seen_from: ir.Value | None = None


def row_mask(rewrite: str, attention: ir.Node) -> RowMask | None:
    """The mask of an ``Attention`` over a cache, ``causal_bias`` or ``seen_bias``; None for none.

    Raises:
        PassError: It adds something else.
    """
    mask = attention.inputs[3]
    if mask is None:
        return None
    node = mask.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Reshape"):
        node = node.inputs[0].producer()
    inputs = {value.name: value for value in attention.graph.inputs}
    row, seen_to = inputs.get(SIZE_BIAS), inputs.get(SEEN_TO)
    if node is not None and node.op_type == "Where":
        seen = node.inputs[0].producer()
        windowed = seen is not None and seen.op_type == "And"
        seen_from = inputs.get(SEEN_FROM) if windowed else None
        if row is not None and node.inputs[1] is row:
            return RowMask(row, seen_to, seen_from)
        if row is None and seen_to is not None:
            return RowMask(None, seen_to, seen_from)
    raise PassError(rewrite, attention, f"a mask from Where over {SIZE_BIAS}", maker(mask))


def attention_scale(rewrite: str, attention: ir.Node, causal: bool) -> float:
    """The factor on the products of an ``Attention`` that is causal or not, and nothing else.

    Raises:
        PassError: It has no scale, is not as causal as that, or has an attribute of another kind.
    """
    found = {name: each.value for name, each in attention.attributes.items()}
    others = {name: value for name, value in found.items() if name != "scale"}
    wanted = {"is_causal": 1} if causal else {}
    if others != wanted or "scale" not in found:
        expected = " and ".join(["scale", *(f"{name}={each}" for name, each in wanted.items())])
        raise PassError(rewrite, attention, f"attributes {expected} alone", str(found))
    return float(found["scale"])


def cache_writes(rewrite: str, attention: ir.Node) -> tuple[ir.Node, ir.Node]:
    """The ``TensorScatter`` nodes that put new keys and values into the caches ``[1, H, N, D]``.

    Raises:
        PassError: Keys or values come from elsewhere, or are written along another axis.
    """
    keys = producer(rewrite, attention, 1, "TensorScatter")
    nodes = keys, producer(rewrite, attention, 2, "TensorScatter")
    for node in nodes:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -2
        if axis not in (2, -2):
            raise PassError(rewrite, node, "axis 2, the rows of the cache", f"axis {axis}")
    return nodes


def graph_input(rewrite: str, graph: ir.Graph, name: str) -> ir.Value:
    """An input of the graph by its name.

    Raises:
        PassError: There is none of that name.
    """
    for value in graph.inputs:
        if value.name == name:
            return value
    found = ", ".join(str(value.name) for value in graph.inputs) or "none"
    raise PassError(rewrite, graph, f"an input {name}", f"inputs {found}")


def take_place(old: ir.Value, new: ir.Value, keep_shape: bool = True) -> None:
    """Put a value in another's place, also where that is an output of the graph."""
    new.name, new.type = old.name, old.type
    new.shape = old.shape if keep_shape else new.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{old.name}.replaced"


def swap_heads_and_rows(value: ir.Value) -> None:
    """Change a value's shape ``[1, H, N, D]`` to ``[1, N, H, D]``; its rank was checked before."""
    value.shape = ir.Shape([value.shape[axis] for axis in SWAP])
