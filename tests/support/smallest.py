"""The smallest value of a record, for tests that need one and not what is in it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any


def smallest(kind: Any) -> Any:
    """The one value that takes no choice: zeros, empty, None."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: smallest(hint) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(map(smallest, arguments))
    return origin() if origin in (int, float, str, bool, tuple, dict) else None
