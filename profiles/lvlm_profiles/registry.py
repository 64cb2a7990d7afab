"""One mechanism for every table of names: name -> ``"module:ATTRIBUTE"``, imported when wanted."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
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
        raise UsageError(unknown_name(kind, name, sorted(table)))
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The line for a name that nothing has, with the one that was probably meant.

    Args:
        kind: What has names, "method".
        name: What was given.
        known: All names, in the order to show them in.

    Example:
        >>> unknown_name("device", "orin_nano", ["orin_nano_8gb", "rtx_3060"])
        "unknown device 'orin_nano'; did you mean 'orin_nano_8gb'? known: orin_nano_8gb, rtx_3060"
    """
    import difflib

    names = list(known)
    wanted = name.lower()
    close = difflib.get_close_matches(wanted, names, 1, 0.7)
    # A part of a name is one that somebody remembers: "orin_nano" of orin_nano_8gb.
    close += [each for each in names if len(wanted) > 2 and wanted in each]
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {meant}known: {', '.join(names) or 'none'}"
