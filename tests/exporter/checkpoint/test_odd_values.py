"""Any value anywhere in a checkpoint's JSON files: it is read, or one line says what is wrong."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import made_once
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight
from lvlm_runtime.errors import LvlmError
from traits import BASES, INDEX

ODD = (
    *(None, True, 0, -1, 1.5, 10**12, float("nan"), float("-inf")),
    *("x", "", [], [1], [[1]], {}, {"a": 1}),
)
FILES = [
    ("llava", "config.json"),
    ("onevision", "config.json"),
    ("onevision", "preprocessor_config.json"),
    ("llava", "tokenizer_config.json"),
    ("llava", "generation_config.json"),
    ("shards", INDEX),
]
# Longest line that a terminal still shows as one thought; paths take some of it.
LONGEST = 600


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry of a JSON value by its keys; of a list the first two."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, entry in entries:
        yield (*place, key)
        if isinstance(entry, dict | list):
            yield from places(entry, (*place, key))


def with_value(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    changed = copy.deepcopy(content)
    around = changed
    for key in place[:-1]:
        around = around[key]
    around[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    "share", [pytest.param(12, id="some"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("base", "name"), FILES)
def test_an_odd_value_is_one_line(
    base: str, name: str, share: int | None, shared: Path, tmp_path: Path
) -> None:
    with made_once(shared / f"traits_{base}") as part:
        if part is not None:
            BASES[base](part)
    directory = Path(shutil.copytree(shared / f"traits_{base}", tmp_path / "model"))
    content = json.loads((directory / name).read_text())
    changes = [(place, value) for place in places(content) for value in ODD]
    lines = []
    for place, value in changes if share is None else random.Random(0).sample(changes, share):
        (directory / name).write_text(json.dumps(with_value(content, place, value)))
        try:
            preflight(Checkpoint.open(directory))
        except LvlmError as error:
            lines.append((place, value, str(error)))
    assert lines
    assert [each for each in lines if "\n" in each[2] or len(each[2]) > LONGEST] == []
