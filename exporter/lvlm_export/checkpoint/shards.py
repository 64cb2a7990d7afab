"""Safetensors files: opened lazily, and one line where one is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lvlm_runtime.errors import LvlmError


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read when they are asked for.

    Raises:
        LvlmError: It cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise LvlmError(f"{path} is truncated or damaged ({error}); copy it again") from error
