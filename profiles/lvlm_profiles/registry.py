"""One mechanism for every table of names: name -> ``"module:ATTRIBUTE"``, imported when wanted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lvlm_profiles.errors import UsageError


def resolve(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Import the entry ``name`` of a literal table.

    Args:
        table: name -> ``"package.module:ATTRIBUTE"``.
        name: The entry wanted.
        kind: What the table holds, for the message ("method", "backend").

    Raises:
        UsageError: ``name`` is not in the table; the message lists what is.

    Example:
        >>> resolve({"square_root": "math:sqrt"}, "square_root", "function")(9)
        3.0
    """
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
