"""Which files and places a graph file names for its tensors.

A graph may say ``../../somewhere`` for the file of a tensor, in its initialisers, in an attribute or
in a graph inside a node, and not every version of the libraries that load it refuses that.
Source: onnx/onnx.proto3 of the ONNX repository, ``TensorProto.external_data``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.protobuf import read_fields

# Deepest that graphs lie in graphs; what a library walks itself it walks recursively.
MOST_DEPTH = 16
# Fields: message -> number -> what is inside. A tensor is where a walk ends.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# What every tensor in another file says; a node without these bytes is not looked into.
_KEY = b"location"


def check_external(data: bytes, weights: str, size_bytes: int, where: str | Path) -> None:
    """Refuse a graph that reads anything but its place in the weight file.

    Args:
        data: The graph file.
        weights: The only file that a tensor may lie in.
        size_bytes: Its length.
        where: The graph file's name, for messages.

    Raises:
        LvlmError: Another file, or a place outside it.
    """
    try:
        for place in _places(data, "model", 0):
            location, offset, length = place
            if location != weights:
                raise LvlmError(
                    f"{where} reads the file {location!r}, and a graph of a bundle reads {weights}"
                    " alone; build the bundle again from a checkpoint that you trust"
                )
            if offset < 0 or length < 0 or offset + length > size_bytes:
                raise LvlmError(
                    f"{where} reads {length} bytes at {offset} of {weights}, which has {size_bytes};"
                    " copy the bundle again or build it again"
                )
    except (ValueError, IndexError, TypeError, AttributeError, struct.error, RecursionError):
        raise LvlmError(
            f"{where} is not an ONNX file; copy the bundle again or build it again"
        ) from None


def _places(data: bytes, kind: str, depth: int) -> Iterator[tuple[str, int, int]]:
    """File, offset and length of every tensor in another file, somewhere in a message."""
    if depth > MOST_DEPTH * 4:
        raise ValueError("graphs in graphs without end")
    inside = _INSIDE[kind]
    for number, value in read_fields(data):
        part = inside.get(number)
        if part == "tensor":
            yield from _external(value)
        elif part is not None and (part != "node" or _KEY in value):
            yield from _places(value, part, depth + 1)


def _external(tensor: bytes) -> Iterator[tuple[str, int, int]]:
    entries: dict[str, str] = {}
    elsewhere: Any = 0
    for number, value in read_fields(tensor):
        if number == 13:
            pair = dict(read_fields(value))
            entries[pair.get(1, b"").decode("utf-8")] = pair.get(2, b"").decode("utf-8")
        elif number == 14:
            elsewhere = value
    if entries or elsewhere:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "0"))
        yield entries.get("location", ""), offset, length
