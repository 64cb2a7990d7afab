"""The guarded readers: whatever comes in, plain values go out or one reason."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lvlm_profiles import records
from lvlm_profiles.errors import LvlmError
from lvlm_profiles.readers import (
    MOST_DEPTH,
    UnreadableError,
    decode,
    load_json,
    parse_json,
    parse_json_lines,
    read_bytes,
    unzip,
)

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value: line 1 column 1"),
        ("{", "Expecting property name"),
        ("[1,]", r"Illegal trailing comma|Expecting value"),
        ("[" * DEEP, "nests deeper than 64 levels"),
        ('{"a":' * DEEP, "nests deeper than 64 levels"),
        ("[" * 80 + "]" * 80, "nests deeper than 64 levels"),
        ("9" * 5000, "a number of more than 40 digits"),
        ("9" * 41, "a number of more than 40 digits"),
        ("-" + "9" * 41, "a number of more than 40 digits"),
        ("NaN", "infinite or none"),
        ("[-Infinity]", "infinite or none"),
        ('{"a": 1e999}', "infinite or none"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice in one table"),
        ('{"' + "long" * 99 + '": 1, "' + "long" * 99 + '": 2}', "'(long){15}' stands twice"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'{"\udc00 name": 1}', "half of a surrogate pair"),
    ],
)
def test_json_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        parse_json(text)


def test_json_that_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}') == {
        "a": [1, 2.5, None, True, "\U0001f600"]
    }
    assert parse_json("1000000000000000019884624838656") == int(1e30)
    twice = '[{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}]'
    assert parse_json(twice, repeated=True) == json.loads(twice) == [{"a": 3, "b": {"c": 2}}]
    assert parse_json("[-Infinity]", constants=True) == [float("-inf")]
    depth = MOST_DEPTH
    assert json.dumps(parse_json("[" * depth + "]" * depth)) == "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xef\xbb\xbf{}", "begins with a byte order mark: save it as UTF-8 without one"),
        ("{}".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("{}".encode("utf-16-le"), "not text: it holds NUL bytes"),
        (b'{"a": "\xff"}', "not UTF-8 text: invalid start byte at byte 7"),
        (b'"\0"', "not text: it holds NUL bytes"),
        (b"\x89PNG\r\n\x1a\n\0", "a PNG picture"),
        (gzip.compress(b"{}", mtime=0), "a gzip file"),
        (b"PK\x03\x04\xff", "a zip file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer.* `git lfs pull`"),
    ],
)
def test_bytes_that_are_no_text(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"it .*{reason}"):
        decode(data)


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, kind in ((pipe, "a pipe"), (tmp_path, "a directory"), ("/dev/zero", "a device")):
        with pytest.raises(UnreadableError, match=f"it is {kind}, not a file"):
            load_json(path)
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "absent")
    with pytest.raises(UnreadableError, match="its name holds a NUL byte"):
        load_json("a\0b")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UnreadableError, match="larger than the 0 MB"):
        read_bytes(tmp_path / "file", 4)
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(1 << 40)  # a file with a hole takes no disk
    with pytest.raises(UnreadableError, match="larger than the 67 MB that are read"):
        load_json(tmp_path / "huge")


def test_gzip_is_unpacked_up_to_its_limit() -> None:
    packed = gzip.compress(b"first ") + gzip.compress(b"second")
    assert unzip(packed) == b"first second"
    bomb = gzip.compress(bytes(1 << 24))
    assert len(bomb) < 1 << 15
    with pytest.raises(UnreadableError, match="larger than 1 MB when unpacked"):
        unzip(bomb, 10**6)
    for cut in range(1, len(packed)):
        if cut != len(gzip.compress(b"first ")):
            with pytest.raises(UnreadableError, match=r"cut short|no gzip file"):
                unzip(packed[:cut])
    with pytest.raises(UnreadableError, match="no gzip file or a damaged one"):
        unzip(b"{}")
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(packed)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        # Not every bit of a header means something; nothing else may come out.
        with contextlib.suppress(UnreadableError):
            assert unzip(bytes(damaged)) == b"first second"


def test_lines_of_json_end_with_a_line_feed_alone() -> None:
    line = json.dumps({"answer": "one\u2028two\x85three"}, ensure_ascii=False)
    assert list(parse_json_lines(f"{line}\r\n\n{line}")) == [
        (1, {"answer": "one\u2028two\x85three"}),
        (3, {"answer": "one\u2028two\x85three"}),
    ]
    with pytest.raises(UnreadableError, match=r"line 2: 'a' stands twice"):
        list(parse_json_lines('1\n{"a": 1, "a": 1}'))


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, 10**39])
def test_a_count_of_more_than_64_bits_is_refused(value: int) -> None:
    with pytest.raises(LvlmError, match="expected 64 bits, got"):
        records.read(dict[str, int], {"tokens": value}, "file.json", "mend it")
    assert records.read(int, (1 << 63) - 1, "file.json", "mend it") == (1 << 63) - 1


@pytest.mark.parametrize(
    "read", [lambda path: records.read_json(path, "mend it"), load_json], ids=["record", "plain"]
)
def test_errors_name_the_file_where_the_caller_knows_it(
    read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * DEEP)
    with pytest.raises((LvlmError, UnreadableError)) as refused:
        read(path)
    assert "\n" not in str(refused.value)
