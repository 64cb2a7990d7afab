"""From a torch module to an ONNX program, traced once.

``torch.onnx.export(dynamo=True)`` captures a module, decomposes what ONNX has no operators for by
tracing the capture anew, and translates the result. Of the modules here the second tracing takes more
than half of the time of a build and changes next to nothing: casts, assertions and other spellings of
one operator. ``lower`` does these changes on the captured graph; what it does not know is
decomposed as torch does it.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from dataclasses import dataclass
from typing import Any

import torch
from onnxscript import version_converter
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.onnx._internal.exporter import (
    _capture_strategies,
    _core,
    _decomp,
    _flags,
    _fx_passes,
    _ir_passes,
    _registration,
)

OPSET = 24
_ATEN = torch.ops.aten
_CASTS = {_ATEN.to.device, _ATEN.to.dtype, _ATEN.to.dtype_layout}
# Two spellings of one operator; ONNX has a translation of the second.
_SPELLINGS = {
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
}


@dataclass(frozen=True)
class Signature:
    """Names and dynamic axes of a graph.

    Attributes:
        inputs: Flat input names.
        outputs: Flat output names.
        dynamic_shapes: As ``torch.export`` takes them, in the structure of the arguments.
        positional: How many of the inputs the module takes by their places, the others by their
            names; None for all.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_shapes: Any
    positional: int | None = None


@_flags.set_onnx_exporting_flag
def trace(module: nn.Module, arguments: tuple[Any, ...], signature: Signature) -> Any:
    """The ONNX program of a module, neither optimised nor with names of axes.

    Args:
        module: A subgraph or a reducer.
        arguments: Example inputs; only shapes and dtypes matter.
        signature: Names and dynamic axes.
    """
    placed, named, shapes = _by_name(module, arguments, signature)
    with torch.no_grad():
        # Narrows the range of an axis where the module takes fewer lengths than it was told.
        capture = _capture_strategies.TorchExportNonStrictStrategy()
        captured = capture(module.eval(), placed, named, shapes)
        if captured.exported_program is None:
            assert captured.exception is not None
            raise captured.exception
        # As torch.onnx does it: an axis of one in the examples may have any length.
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            lowered = lower(captured.exported_program)
            _fx_passes.insert_type_promotion_nodes(lowered.graph_module)
    program = _core._exported_program_to_onnx_program(lowered, registry=registry())
    version_converter.convert_version(program.model, OPSET, fallback=True)
    _ir_passes.rename_inputs(program.model, signature.inputs)
    _ir_passes.rename_outputs(program.model, signature.outputs)
    return program


def _by_name(
    module: nn.Module, arguments: tuple[Any, ...], signature: Signature
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments by place, arguments by name, and their dynamic axes as ``torch.export`` wants both."""
    first = signature.positional
    if first is None or first == len(arguments):
        return arguments, {}, signature.dynamic_shapes
    names = signature.inputs[first:]
    parameters = list(inspect.signature(module.forward).parameters)[:first]
    shapes = dict(zip((*parameters, *names), signature.dynamic_shapes, strict=True))
    return arguments[:first], dict(zip(names, arguments[first:], strict=True)), shapes


@functools.cache
def registry() -> _registration.ONNXRegistry:
    """The translations of operators; built anew for every graph they take as long as a small graph."""
    return _registration.ONNXRegistry.from_torchlib(opset_version=OPSET)


@functools.cache
def _translated() -> frozenset[Any]:
    return frozenset(_decomp.get_onnx_implemented_overloads(registry()))


def lower(program: ExportedProgram) -> ExportedProgram:
    """A captured program in operators that ONNX has translations of.

    Where one is left that it has none of, all are decomposed as ``torch.onnx`` does it.
    """
    graph = _fx_passes.remove_assertion_nodes(program.graph_module).graph
    with program.graph_module._set_replace_hook(program.graph_signature.get_replace_hook()):
        for node in list(graph.nodes):
            if node.op == "call_function":
                _lower_node(graph, node)
        graph.eliminate_dead_code()
    known = {operator.getitem, *_translated()}
    if all(node.op != "call_function" or node.target in known for node in graph.nodes):
        program.graph_module.recompile()
        return program
    decomposed = _fx_passes.decompose_with_registry(program, registry())
    _fx_passes.remove_assertion_nodes(decomposed.graph_module)
    return decomposed


def _lower_node(graph: Graph, node: Node) -> None:
    """Erase what says nothing to ONNX, and spell the rest as its translation reads best."""
    if _says_nothing(node):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)
    elif node.target in _CASTS:
        node.target, node.args = _ATEN._to_copy.default, node.args[:1]
        node.kwargs = {"dtype": _value(node).dtype}
    elif node.target in _SPELLINGS:
        node.target = _SPELLINGS[node.target]
    elif node.target is _ATEN.narrow.default:
        source, axis, start, length = node.args
        if start == 0 or (isinstance(start, int) and isinstance(length, int)):
            end = length if start == 0 else start + length  # type: ignore[operator]
            node.target, node.args = _ATEN.slice.Tensor, (source, axis, start, end)
    elif node.target is _ATEN.flatten.using_ints:
        sizes = [-1 if isinstance(size, torch.SymInt) else size for size in _value(node).shape]
        if sizes.count(-1) <= 1:
            node.target, node.args, node.kwargs = _ATEN.reshape.default, (node.args[0], sizes), {}
    elif node.target is _ATEN.reshape.default:
        # What is left over is a number where the shape is known.
        source, asked = node.args[:2]
        known = zip(asked, _value(node).shape, strict=True)  # type: ignore[arg-type]
        sizes = [size if given == -1 and isinstance(size, int) else given for given, size in known]
        node.args = (source, sizes)


def _value(node: Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _says_nothing(node: Node) -> bool:
    """Whether the result is the argument: a cast to its own type, a slice of everything."""
    if node.target in _CASTS:
        return _value(node).dtype == _value(node.args[0]).dtype  # type: ignore[arg-type]
    if node.target is _ATEN.slice.Tensor:
        given = node.args[2:]
        begin = given[0] if given else None
        end = given[1] if len(given) > 1 else None
        return begin in (None, 0) and end in (None, sys.maxsize) and given[2:] in ((), (1,))
    return bool(node.target is _ATEN.contiguous.default)
