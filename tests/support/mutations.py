"""What an attack does to a file: changes of structure, of bytes, and of what lies at its place.

Every function takes hypothesis' ``draw`` and valid content, and returns other content. What is drawn
decides everything, so a seed gives the same attacks again.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Values that a format can write down and nobody expects, as JSON text.
ODD = (
    *("null", "true", "false", "[]", "{}", '""', "[[]]", "[null]", '[""]', '{"": null}'),
    *(
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "-0.0",
        "1e-300",
        "1e300",
        "1e999",
        "NaN",
        "Infinity",
        "-Infinity",
    ),
    *("2147483648", "9223372036854775807", "9223372036854775808", "1" + "0" * 30, "9" * 5000),
    *('"0"', '"auto"', '"../../../etc/passwd"', '"/dev/zero"', '"a/b"', '"."', '".."', '"\\u0000"'),
    *(
        '"\\ud800"',
        '"\\u001b[2J"',
        '"\\u202e"',
        '"\\u2028"',
        '"[/bold]"',
        '"{0}"',
        '"%s%n"',
        '"\\\\"',
    ),
    '"' + "x" * 10_000 + '"',
    "[" * 100_000,
    "[" * 300 + "]" * 300,
    '{"a":' * 100_000,
    "[" + "1," * 5000 + "1]",
    '{"a": 1, "a": 2}',
)
# What somebody gives by mistake in place of a file of text.
OTHER_KINDS = (
    b"",
    b" ",
    b"\n" * 1000,
    b"\0" * 100,
    b"\xff" * 100,
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    gzip.compress(b"{}"),
    gzip.compress(bytes(1 << 20)),
    b"PK\x03\x04" + bytes(30),
    b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!DOCTYPE html><html>404</html>",
    "{}".encode("utf-16"),
    b"\xef\xbb\xbf{}",
    b"Entry not found",
    b"[" * 200_000,
    b"- " * 5000,
    b"a." * 3000 + b"a = 1",
    b"&a [" * 500,
    struct.pack("<Q", 1 << 62) + b"{}",
    struct.pack("<Q", 2) + b"{}",
)
CUTS = 5
# Places that are no file; ``None`` takes it away.
NO_FILES = ("gone", "directory", "pipe", "loop", "zero", "null", "dangling", "huge")


def odd_bytes(draw: Draw, data: bytes) -> bytes:
    """Other bytes: one to three changes in random places, or something else altogether."""
    if draw(st.integers(0, 19)) == 0:
        return bytes(draw(st.sampled_from(OTHER_KINDS)))
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = int(draw(st.floats(0, 1)) * len(out))
        kind = draw(st.integers(0, CUTS))
        if kind == 0:
            del out[at:]
        elif kind == 1 and out:
            out[min(at, len(out) - 1)] ^= 1 << draw(st.integers(0, 7))
        elif kind == 2:
            out[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif kind == 3:
            del out[at : at + draw(st.integers(1, 64))]
        elif kind == 4:
            out[at:at] = out[at : at + draw(st.integers(1, 512))]
        else:
            out[at : at + 8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1)))
    return bytes(out)


def odd_json(draw: Draw, data: bytes) -> bytes:
    """JSON whose entries are gone, doubled, renamed, swapped or of another kind; or odd bytes."""
    if draw(st.integers(0, 4)) == 0:
        return odd_bytes(draw, data)
    value = json.loads(data)
    raw: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        value = _odd_entry(draw, value, raw)
    text = json.dumps(value)
    for number, odd in enumerate(raw):
        text = text.replace(f'"@{number}@"', odd)
    return text.encode()


def odd_lines(draw: Draw, data: bytes) -> bytes:
    """JSON lines, one of them odd."""
    lines = data.split(b"\n")
    at = draw(st.integers(0, len(lines) - 1))
    if not lines[at].strip():
        return odd_bytes(draw, data)
    lines[at] = odd_json(draw, lines[at])
    return b"\n".join(lines)


def odd_gzip(draw: Draw, data: bytes) -> bytes:
    """Gzip of odd lines, or odd bytes in the gzip itself, or a bomb."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return gzip.compress(bytes(80 << 20), 1)
    if kind < 6:
        return odd_bytes(draw, data)
    return gzip.compress(odd_lines(draw, gzip.decompress(data)), 1)


def odd_text(draw: Draw, data: bytes) -> bytes:
    """TOML, YAML or a template: a line gone, doubled, or with another value; or odd bytes."""
    lines = data.split(b"\n")
    kind, at = draw(st.integers(0, 4)), draw(st.integers(0, len(lines) - 1))
    if kind == 0:
        return odd_bytes(draw, data)
    if kind == 1:
        del lines[at]
    elif kind == 2:
        lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
    else:
        odd = draw(st.sampled_from(ODD)).encode()
        for mark in (b"=", b":", b"{{"):
            name, found, _ = lines[at].partition(mark)
            if found:
                lines[at] = name + found + b" " + odd
                break
        else:
            lines[at] += odd
    return b"\n".join(lines)


def odd_header(draw: Draw, data: bytes) -> bytes:
    """A safetensors file whose header says something else, or odd bytes."""
    if draw(st.integers(0, 3)) == 0:
        return odd_bytes(draw, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = odd_json(draw, data[8 : 8 + length])
    size = len(header) + (draw(st.sampled_from((0, 0, 0, 1, -1, 7, 1 << 40))))
    return struct.pack("<Q", max(size, 0)) + header + data[8 + length :]


def odd_message(draw: Draw, data: bytes) -> bytes:
    """A protobuf message with a field, at any depth, gone, doubled, or of another wire type."""
    if draw(st.integers(0, 3)) == 0:
        return odd_bytes(draw, data)
    from lvlm_runtime.graphs.protobuf import BYTES, VARINT, encode_field, read_records

    try:
        records = list(read_records(data))
    except (ValueError, IndexError):
        return odd_bytes(draw, data)
    if not records:
        return bytes(draw(st.binary(max_size=20)))
    at = draw(st.integers(0, len(records) - 1))
    number, kind, value, raw = records[at]
    change = draw(st.integers(0, 9))
    if kind == BYTES and value and change < 6:
        raw = encode_field(number, BYTES, odd_message(draw, value))
    elif change == 6:
        raw = b""
    elif change == 7:
        raw += raw
    elif change == 8:
        raw = encode_field(number, VARINT, draw(st.integers(0, 2**64 - 1)))
    else:
        # The message in itself, as deep as the kilobytes reach.
        for _ in range(draw(st.sampled_from((3, 100, 2000)))):
            raw = encode_field(number, BYTES, raw)
    return b"".join([*(each[3] for each in records[:at]), raw, *(r[3] for r in records[at + 1 :])])


def put_no_file(path: Path, kind: str) -> None:
    """Replace a file by nothing or by something that is no file."""
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.truncate(10 << 30)  # a file with a hole takes no disk
    elif kind != "gone":
        leads_to = {"loop": path, "zero": "/dev/zero", "null": "/dev/null", "dangling": "nowhere"}
        path.symlink_to(leads_to[kind])


def _odd_entry(draw: Draw, value: Any, raw: list[str]) -> Any:
    """The value with one entry changed; ``raw`` collects text that stands for its words."""
    places = _places(value)
    if not places:
        raw.append(draw(st.sampled_from(ODD)))
        return f"@{len(raw) - 1}@"
    container, key = places[draw(st.integers(0, len(places) - 1))]
    kind = draw(st.integers(0, 9))
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[draw(st.text(max_size=8))] = container.pop(key)
    elif kind == 2:
        other, name = places[draw(st.integers(0, len(places) - 1))]
        container[key] = json.loads(json.dumps(other[name]))
    elif kind == 3 and isinstance(container[key], (int, float)):
        container[key] = container[key] * draw(st.sampled_from((-1, 0, 2, 1000, 10**9, 0.5)))
    elif kind == 4 and isinstance(container[key], list):
        container[key] = container[key] * draw(st.sampled_from((0, 2, 50)))
    else:
        raw.append(draw(st.sampled_from(ODD)))
        container[key] = f"@{len(raw) - 1}@"
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every entry of every table and list, with what holds it."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        each = left.pop()
        keys = (
            each if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        )
        for key in keys:
            found.append((each, key))
            left.append(each[key])
    return found
