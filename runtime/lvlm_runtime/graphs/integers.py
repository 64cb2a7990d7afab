"""Products of integers with activations that are rounded while the graph runs, for a CPU.

A bundle's graph says ``MatMul(x, DequantizeLinear(q, scales))``. Where ``q`` has a scale per output, a CPU
with VNNI multiplies ``x`` rounded to 8 bits with ``q`` three to four times as fast as in float32, a prompt of
hundreds of tokens as well as one token, and ONNX Runtime does not make that of the graph by itself. It is the same
file: what is published, hashed and compared with PyTorch stays the standard graph.

Every row of ``x`` (a token) has a scale of its own, as in ZeroQuant (Yao et al. 2022, 3.1, "token-wise"):
one scale for all (``DynamicQuantizeLinear``) saves a tenth of the time, and a token with values twenty times
as large as those of the others, which language models have, takes a tenth off the exactness of all.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lvlm_runtime.graphs.protobuf import BYTES, VARINT, edit_field, encode_field, read_records
from lvlm_runtime.graphs.reader import (
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    MODEL_OPSET,
    Graph,
    Node,
    parse_model,
)

# ONNX Runtime's own operators; the product of 8-bit integers with a scale per output is one of them.
CONTRIBUTED = "com.microsoft"
_FLOAT32, _UINT8, _INT8, _INT32, _INT64 = 1, 2, 3, 6, 7
# Rows are rounded to the numbers from 1 to 255 around this, so that 0 stays 0.
_ZERO, _STEPS = 128, 127
# So that a row of zeros is divided by something.
_LEAST = 1e-30
_PREFIX = "rounded_rows"
_LAST_AXIS, _STEP, _MIDDLE, _LEAST_NAME = (
    f"{_PREFIX}.{name}" for name in ("last_axis", "step", "zero", "least")
)


@dataclass(frozen=True)
class _Weight:
    """What a product's second input stands for.

    Attributes:
        values: The integers' name.
        scales: Of the scales, one per output.
        rows: The integers are ``[out, in]`` and go into the product transposed.
    """

    values: str
    scales: str
    rows: bool


def multiply_in_integers(data: bytes, path: Path) -> bytes:
    """A model whose products in float32 with a scale per output round their activations.

    1. ``MatMul(x, DequantizeLinear(q, scales, axis=1))`` and ``MatMul(x, Transpose(DequantizeLinear(q,
       scales, axis=0)))`` become a product of ``q`` with the rows of ``x`` rounded to 8 bits, once for
       all products that take ``x``, times both scales.
    2. Everything else stays: other types, blocks of inputs with scales of their own, and a weight that
       something else takes too.

    Args:
        data: A serialised model.
        path: Its file, for messages.

    Raises:
        LvlmError: It is not an ONNX file.
    """
    if b"DequantizeLinear" not in data:
        return data
    model = parse_model(data, path)
    replaced = _products(model.graph)
    if not replaced:
        return data
    changed = edit_field(data, MODEL_GRAPH, lambda graph: _rewrite(graph, model.graph, replaced))
    if CONTRIBUTED not in model.opsets:
        entry = encode_field(1, BYTES, CONTRIBUTED.encode()) + encode_field(2, VARINT, 1)
        changed += encode_field(MODEL_OPSET, BYTES, entry)
    return changed


def overflow_probe() -> tuple[bytes, int]:
    """A model without inputs that multiplies the largest numbers, and what its one output has to hold.

    CPUs without VNNI add two products of 8 bits in 16, where these do not fit.
    """
    size = 64
    graph = b"".join(
        (
            _constant("x", _UINT8, b"\xff" * size, 1, size),
            _constant("w", _INT8, b"\x7f" * size * size, size, size),
            _node("MatMulInteger", ("x", "w"), "y"),
            encode_field(2, BYTES, b"probe"),
            encode_field(GRAPH_OUTPUT, BYTES, _info("y", _INT32)),
        )
    )
    opset = encode_field(1, BYTES, b"") + encode_field(2, VARINT, 20)
    fields = (encode_field(1, VARINT, 9), encode_field(MODEL_OPSET, BYTES, opset))
    return b"".join((*fields, encode_field(MODEL_GRAPH, BYTES, graph))), size * 255 * 127


def _info(name: str, kind: int) -> bytes:
    tensor = encode_field(1, BYTES, encode_field(1, VARINT, kind))
    return encode_field(1, BYTES, name.encode()) + encode_field(2, BYTES, tensor)


def _products(graph: Graph) -> dict[str, _Weight]:
    """Second input of a product -> its weight, where nothing else takes it."""
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(info.name for info in graph.outputs)
    made = {name: node for node in graph.nodes for name in node.outputs}
    found = {}
    for node in graph.nodes:
        if node.op_type != "MatMul" or uses[node.inputs[1]] != 1:
            continue
        last = made.get(node.inputs[1])
        rows = last is not None and _is_transpose(last) and uses[last.inputs[0]] == 1
        first = made.get(last.inputs[0]) if last is not None and rows else last
        if first is not None and first.op_type == "DequantizeLinear":
            kinds = [graph.constants[name].element_type for name in first.inputs]
            if first.attributes == {"axis": 0 if rows else 1} and kinds == ["int8", "float32"]:
                found[node.inputs[1]] = _Weight(first.inputs[0], first.inputs[1], rows)
    return found


def _is_transpose(node: Node) -> bool:
    return node.op_type == "Transpose" and node.attributes == {"perm": (1, 0)}


def _rewrite(data: bytes, graph: Graph, replaced: dict[str, _Weight]) -> bytes:
    gone = set(replaced)
    gone.update(
        node.inputs[0]
        for node in graph.nodes
        if node.op_type == "Transpose" and node.outputs[0] in replaced
    )
    rounded: set[str] = set()
    nodes = iter(graph.nodes)
    out = bytearray(_constants())
    for number, kind, _, raw in read_records(data):
        node = next(nodes) if (number, kind) == (GRAPH_NODE, BYTES) else None
        if node is not None and node.outputs[0] in gone:
            if weight := replaced.get(node.outputs[0]):
                out += _transposed(weight, node.outputs[0])
        elif node is not None and node.op_type == "MatMul" and node.inputs[1] in replaced:
            if node.inputs[0] not in rounded:
                rounded.add(node.inputs[0])
                out += _round_rows(node.inputs[0])
            out += _product(node, replaced[node.inputs[1]])
        else:
            out += raw
    return bytes(out)


def _transposed(weight: _Weight, name: str) -> bytes:
    """Where the integers lie as rows: the transposed ones, for the product whose input was ``name``."""
    if not weight.rows:
        return b""
    perm = encode_field(1, BYTES, b"perm") + b"".join(
        encode_field(8, VARINT, each) for each in (1, 0)
    )
    attribute = encode_field(5, BYTES, perm + encode_field(20, VARINT, 7))
    return _node("Transpose", (weight.values,), f"{name}.values", attribute)


def _round_rows(x: str) -> bytes:
    """``x`` divided by the largest magnitude of its row, and that rounded."""
    largest, smallest, negated, whole, divided, values = (
        f"{x}.{name}"
        for name in ("largest", "smallest", "negated", "magnitude", "divided", "values")
    )
    return b"".join(
        (
            _node("ReduceMax", (x, _LAST_AXIS), largest),
            _node("ReduceMin", (x, _LAST_AXIS), smallest),
            _node("Neg", (smallest,), negated),
            _node("Max", (largest, negated, _LEAST_NAME), whole),
            _node("Div", (x, whole), divided),
            _node("QuantizeLinear", (divided, _STEP, _MIDDLE), values),
        )
    )


def _product(node: Node, weight: _Weight) -> bytes:
    x, out = node.inputs[0], node.outputs[0]
    values = f"{node.inputs[1]}.values" if weight.rows else weight.values
    operands = (f"{x}.values", values, _STEP, weight.scales, _MIDDLE)
    domain = encode_field(7, BYTES, CONTRIBUTED.encode())
    product = _node("MatMulIntegerToFloat", operands, f"{out}.of_rounded", domain)
    return product + _node("Mul", (f"{out}.of_rounded", f"{x}.magnitude"), out)


def _node(operator: str, inputs: tuple[str, ...], output: str, more: bytes = b"") -> bytes:
    """A node with one output, which it is named after."""
    parts = [encode_field(1, BYTES, each.encode()) for each in inputs]
    parts += [encode_field(2, BYTES, output.encode()), encode_field(3, BYTES, output.encode())]
    return encode_field(
        GRAPH_NODE, BYTES, b"".join((*parts, encode_field(4, BYTES, operator.encode()), more))
    )


def _constants() -> bytes:
    return b"".join(
        (
            _constant(_LAST_AXIS, _INT64, struct.pack("<q", -1), 1),
            _constant(_STEP, _FLOAT32, struct.pack("<f", 1 / _STEPS)),
            _constant(_MIDDLE, _UINT8, bytes([_ZERO])),
            _constant(_LEAST_NAME, _FLOAT32, struct.pack("<f", _LEAST)),
        )
    )


def _constant(name: str, kind: int, raw: bytes, *dims: int) -> bytes:
    fields = [encode_field(1, VARINT, size) for size in dims]
    fields += [encode_field(2, VARINT, kind), encode_field(8, BYTES, name.encode())]
    return encode_field(GRAPH_INITIALIZER, BYTES, b"".join((*fields, encode_field(9, BYTES, raw))))
