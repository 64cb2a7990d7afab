"""The numbers of config.json, checked before anything is made of them.

A width of nothing, a million layers or a NaN would otherwise be found by whoever divides by it,
allocates for it or compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_runtime.errors import LvlmError

_WIDTH, _MANY = 1 << 20, 1 << 26
# Whole numbers and the smallest and largest value of each, far beyond any model there is.
WHOLE = {
    "num_hidden_layers": (1, 1000),
    "hidden_size": (1, _WIDTH),
    "intermediate_size": (1, _WIDTH),
    "projection_dim": (1, _WIDTH),
    "num_attention_heads": (1, _WIDTH),
    "num_key_value_heads": (1, _WIDTH),
    "head_dim": (2, _WIDTH),
    "vocab_size": (1, _MANY),
    "max_position_embeddings": (1, _MANY),
    "original_max_position_embeddings": (1, _MANY),
    "sliding_window": (1, _MANY),
    "max_window_layers": (0, _MANY),
    "image_size": (1, 1 << 14),
    "patch_size": (1, 1 << 14),
    "num_channels": (3, 3),
    "image_token_index": (0, _MANY),
    "image_token_id": (0, _MANY),
    "video_token_index": (0, _MANY),
    "video_token_id": (0, _MANY),
}
# Of these a pair is height and width.
PAIRS = ("image_size", "patch_size")
# Of these null is no value; of the others transformers knows what it stands for, or refuses it.
NEVER_NULL = ("image_size", "patch_size")
# Numbers that are divided by, or that a root is taken of.
POSITIVE = ("rope_theta", "factor", "rms_norm_eps", "layer_norm_eps")


def check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Check every number of a configuration, at any depth.

    Args:
        path: config.json, for the message.
        config: What it holds.

    Raises:
        LvlmError: A value is not a number that a model can have.
    """
    for name, value in _entries(config, ""):
        key, wanted = name.rpartition(".")[2], None
        if key in WHOLE and (value is not None or key in NEVER_NULL):
            low, high = WHOLE[key]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not low <= value <= high:
                wanted = f"a whole number from {low} to {high}"
        elif key in POSITIVE and value is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                wanted = "a number above 0"
        elif isinstance(value, float) and not math.isfinite(value):
            wanted = "a finite number"
        if wanted is not None:
            raise LvlmError(f"{name} in {path} is {_short(value)}, {wanted} is needed; correct it")


def _entries(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no object or list, by its dotted name."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _entries(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and _holds_several(name.rpartition(".")[2], value):
        for entry in value:
            yield from _entries(entry, name)
    else:
        yield name, value


def _holds_several(key: str, value: list[Any]) -> bool:
    """A list of values, or a pair where one is allowed; of other numbers a list is no value."""
    return key not in WHOLE or (key in PAIRS and len(value) == 2)


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:40]}…"
