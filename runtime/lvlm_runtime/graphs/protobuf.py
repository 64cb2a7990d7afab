"""The protobuf wire format: walking a message and changing parts of it.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def edit_field(data: bytes, wanted: int, change: Callable[[bytes], bytes]) -> bytes:
    """The message with every length-delimited field ``wanted`` replaced by ``change`` of it."""
    out = bytearray()
    for number, kind, value, raw in read_records(data):
        if number == wanted and kind == BYTES:
            out += encode_field(number, BYTES, change(value))
        else:
            out += raw
    return bytes(out)


def encode_field(number: int, kind: int, value: Any) -> bytes:
    """One field: its key and its value."""
    head = encode_varint(number << 3 | kind)
    return head + (encode_varint(value) if kind == VARINT else encode_varint(len(value)) + value)


def encode_varint(value: int) -> bytes:
    """A number of seven bits per byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a message: int for numbers, bytes for everything else."""
    for number, _, value, _ in read_records(data):
        yield number, value


def read_records(data: bytes) -> Iterator[tuple[int, int, Any, bytes]]:
    """Number, wire type, value and all bytes of every field; ValueError where it is cut short."""
    at = 0
    while at < len(data):
        start = at
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == VARINT:
            value, at = read_varint(data, at)
        elif kind == BYTES:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (FIXED32, FIXED64):
            width = 4 if kind == FIXED32 else 8
            value, at = data[at : at + width], at + width
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data) or number == 0:
            raise ValueError("truncated")
        yield number, kind, value, data[start:at]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where the next field starts; ValueError for one of more than 64 bits."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number of more than ten bytes")
