"""What the axes and nodes of a graph are called, so that a parser, a profiler or Netron can be read.

The tracer names axes ``s59`` and nodes ``node_linear_12``. An axis gets the name that the job gave
its ``torch.export.Dim``; a node the name of the module that it is part of, in the whole model where
it is one of its modules, and its operator: ``model.language_model.layers.3.self_attn.q_proj/MatMul``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
from torch import nn

# The modules around a node as the tracer notes them, outermost first, the operation itself last.
SCOPES = "pkg.torch.onnx.name_scopes"
SYMBOL = re.compile(r"\bs\d+\b")


def name_axes(graph: ir.Graph, dynamic_shapes: Any) -> None:
    """Give every symbol of the tracer's the name of the ``Dim`` that it stands for.

    ``torch.onnx.export`` does so after the call that ``export.trace`` makes. Sizes that are computed
    keep their form, ``s12 + s58*s89`` becomes ``text + visual*images``.

    Args:
        graph: As traced.
        dynamic_shapes: As the tracer took them, one entry per input, nested as the arguments.
    """
    names: dict[str, str] = {}
    for value, axes in zip(graph.inputs, _leaves(dynamic_shapes), strict=True):
        names |= {str(value.shape[axis]): dim.__name__ for axis, dim in axes.items()}
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: Any, names: Mapping[str, str]) -> Any:
    if isinstance(size, int) or size.value is None:
        return size
    return SYMBOL.sub(lambda match: names.get(match[0], match[0]), size.value)


def _leaves(dynamic_shapes: Any) -> Iterator[Mapping[int, Any]]:
    for entry in dynamic_shapes:
        if entry is None or isinstance(entry, Mapping):
            yield entry or {}
        else:
            yield from _leaves(entry)


def name_nodes(graph: ir.Graph, module: nn.Module, names: Mapping[int, str], root: str) -> None:
    """Name every node after its module and operator, and number those of one name.

    Args:
        graph: As traced, with the tracer's notes.
        module: What was traced.
        names: ``id(module) -> name`` in the whole model. Modules that are not part of it, a
            reducer's selector say, keep their place in ``module``.
        root: What stands for ``module`` itself.
    """
    places = {local: names.get(id(each), local) for local, each in module.named_modules() if local}
    for node in graph:
        node.name = f"{_place(node, places) or root}/{node.op_type}"
    number_nodes(graph)


def number_nodes(graph: ir.Graph) -> None:
    """Number nodes of the same place and operator in their order: ``Add``, ``Add_1``, ``Add_2``.

    Again after a rewrite, whose nodes have names without a number. ONNX Runtime refuses a graph in
    which two have the same name.
    """
    seen: Counter[str] = Counter()
    for node in graph:
        name = f"{scope_of(node)}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def scope_of(node: ir.Node) -> str:
    """The part of a node's name that says where it is: ``layers.0.mlp/Mul`` -> ``layers.0.mlp``.

    Of a name without a place it is the name.
    """
    name: str = node.name or node.op_type
    return name.rpartition("/")[0] or name


def _place(node: ir.Node, places: Mapping[str, str]) -> str:
    """Name of the innermost module around a node; empty for the traced module itself."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return next((places[each] for each in reversed(scopes[:-1]) if each in places), "")
