"""Reading ONNX graph files, and fixing their input sizes, without the ``onnx`` package.

A device that builds engines has no ``onnx`` installed, and the graphs of a bundle are small: their
weights are in a file beside them. So this reads the protobuf wire format directly, as far as the
operator gate and the engine builder need it.
Source: field numbers from onnx/onnx.proto3 of the ONNX repository.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_profiles.readers import UnreadableError, read_bytes
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.protobuf import VARINT, edit_field, encode_field, read_fields, read_varint

# onnx.TensorProto.DataType
ELEMENT_TYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
    **{14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz"},
    **{19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1"},
}
# Graphs of a bundle are kilobytes, and a byte of one can become a number of a list.
MOST_BYTES = 16 << 20
# What a field of another kind than it should be, and graphs in graphs without end, lead to.
MALFORMED = (
    *(ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error),
    RecursionError,
)
# Fields of ModelProto, GraphProto, ValueInfoProto and of the messages inside them.
MODEL_GRAPH, MODEL_OPSET = 7, 8
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph: a dimension is a size, a symbol, or None where unknown."""

    name: str
    element_type: str
    dims: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Constant:
    """An initialiser or the value of a ``Constant`` node.

    Attributes:
        element_type: As in ``ELEMENT_TYPES``.
        dims: Its shape.
        values: Its integers where they lie in the graph file and are int32 or int64, else None.
    """

    element_type: str
    dims: tuple[int, ...]
    values: tuple[int, ...] | None

    @property
    def size_bytes(self) -> int:
        """What it takes in memory; types below a byte count as packed."""
        bits = int("".join(c for c in self.element_type.split("e")[0] if c.isdigit()) or 8)
        return (math.prod(self.dims) * bits + 7) // 8


@dataclass(frozen=True)
class Node:
    """One node; an attribute is an int, float, str, ``Constant``, ``Graph``, or a tuple of them."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def label(self) -> str:
        """Its name, or where it has none, that of its first output."""
        output = next((name for name in self.outputs if name), "nothing")
        return self.name or f"node of {output}"


@dataclass(frozen=True)
class Graph:
    """Nodes with everything they name."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]


@dataclass(frozen=True)
class OnnxModel:
    """A graph and the version of each operator domain it was written for."""

    opsets: dict[str, int]
    graph: Graph


def read_model(path: Path) -> OnnxModel:
    """Read a graph file; errors as of ``parse_model``."""
    try:
        data = read_bytes(path, MOST_BYTES)
    except UnreadableError as error:
        raise _not_onnx(path, f" ({error})") from None
    return parse_model(data, path)


def parse_model(data: bytes, path: Path) -> OnnxModel:
    """Read a graph.

    Args:
        data: The file's bytes.
        path: Its name, for messages.

    Raises:
        LvlmError: It is not an ONNX file.
    """
    opsets, graph = {}, None
    try:
        for number, value in read_fields(data):
            if number == MODEL_OPSET:
                entry = dict(read_fields(value))
                opsets[_text(entry.get(1, b""))] = int(entry.get(2, 0))
            elif number == MODEL_GRAPH:
                graph = _graph(value)
    except MALFORMED:
        raise _not_onnx(path) from None
    if graph is None:
        raise _not_onnx(path)
    return OnnxModel(opsets, graph)


def _not_onnx(path: Path, reason: str = "") -> LvlmError:
    return LvlmError(f"{path} is not an ONNX file{reason}; copy the bundle again or build it again")


def fix_input_sizes(data: bytes, sizes: Mapping[str, Mapping[int, int]]) -> bytes:
    """The same model with some dimensions of its inputs made static.

    Args:
        data: A serialised model.
        sizes: Input name -> axis -> size.

    Raises:
        KeyError: A name that is no input of the graph.
    """
    left = set(sizes)

    def on_input(value: bytes) -> bytes:
        name = _text(dict(read_fields(value))[1])
        left.discard(name)
        return value if name not in sizes else _with_sizes(value, sizes[name])

    fixed = edit_field(data, MODEL_GRAPH, lambda graph: edit_field(graph, GRAPH_INPUT, on_input))
    if left:
        raise KeyError(f"no input {', '.join(sorted(left))}")
    return fixed


def _with_sizes(info: bytes, sizes: Mapping[int, int]) -> bytes:
    axis = -1

    def on_dim(dim: bytes) -> bytes:
        nonlocal axis
        axis += 1
        return dim if axis not in sizes else encode_field(1, VARINT, sizes[axis])

    def on_tensor(tensor: bytes) -> bytes:
        return edit_field(tensor, 2, lambda shape: edit_field(shape, 1, on_dim))

    return edit_field(info, 2, lambda kind: edit_field(kind, 1, on_tensor))


def _graph(data: bytes) -> Graph:
    inputs, outputs, nodes = [], [], []
    constants: dict[str, Constant] = {}
    for number, value in read_fields(data):
        if number == GRAPH_NODE:
            nodes.append(_node(value))
        elif number == GRAPH_INITIALIZER:
            constants[_text(dict(read_fields(value)).get(8, b""))] = _tensor(value)
        elif number == GRAPH_INPUT:
            inputs.append(_info(value))
        elif number == GRAPH_OUTPUT:
            outputs.append(_info(value))
    for node in nodes:
        if node.op_type == "Constant" and isinstance(node.attributes.get("value"), Constant):
            constants[node.outputs[0]] = node.attributes["value"]
    return Graph(tuple(inputs), tuple(outputs), tuple(nodes), constants)


def _node(data: bytes) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in (1, 2, 3, 4, 7)}
    attributes = {}
    for number, value in read_fields(data):
        if number == 5:
            name, content = _attribute(value)
            attributes[name] = content
        elif number in texts:
            texts[number].append(_text(value))
    name, op_type, domain = ("".join(texts[number][-1:]) for number in (3, 4, 7))
    return Node(name, op_type, domain, tuple(texts[1]), tuple(texts[2]), attributes)


def _attribute(data: bytes) -> tuple[str, Any]:
    name, content = "", None
    many: list[Any] = []
    for number, value in read_fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            content = struct.unpack("<f", value)[0]
        elif number == 3:
            content = _signed(value)
        elif number == 4:
            content = _text(value)
        elif number == 5:
            content = _tensor(value)
        elif number == 6:
            content = _graph(value)
        elif number == 8:
            many += _integers(value)
        elif number == 9:
            many.append(_text(value))
        elif number == 11:
            many.append(_graph(value))
    return name, tuple(many) if many else content


def _tensor(data: bytes) -> Constant:
    dims: list[int] = []
    element, raw, listed, external = 0, None, [], False
    for number, value in read_fields(data):
        if number == 1:
            dims += _integers(value)
        elif number == 2:
            element = value
        elif number in (5, 7):
            listed += _integers(value)
        elif number == 9:
            raw = value
        elif number == 13:
            external = True
    kind = ELEMENT_TYPES.get(element, f"type {element}")
    values = None
    if kind in ("int32", "int64") and not external:
        code = "i" if kind == "int32" else "q"
        size = struct.calcsize(code)
        values = listed if raw is None else struct.unpack(f"<{len(raw) // size}{code}", raw)
    return Constant(kind, tuple(dims), None if values is None else tuple(values))


def _info(data: bytes) -> TensorInfo:
    entry = dict(read_fields(data))
    tensor = dict(read_fields(dict(read_fields(entry.get(2, b""))).get(1, b"")))
    dims: list[int | str | None] = []
    for _, dim in read_fields(tensor.get(2, b"")):
        size = dict(read_fields(dim))
        dims.append(int(size[1]) if 1 in size else _text(size[2]) if 2 in size else None)
    element = tensor.get(1, 0)
    return TensorInfo(_text(entry[1]), ELEMENT_TYPES.get(element, f"type {element}"), tuple(dims))


def _integers(value: Any) -> list[int]:
    """A repeated integer field: one value, or several packed."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: bytes) -> str:
    return value.decode("utf-8")
