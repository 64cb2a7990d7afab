"""How much a chat template may do: a count of work, sizes of values, and the operations that amplify.

A template is foreign code. Without limits, a line of it loops for days or makes a text of a terabyte.
Every loop, call, filter, operator and output spends from a ``WorkCount``; what makes a large value of
small ones (``'x' * n``, ``center``, ``replace``, ``join``, ``%1000d`` ...) is weighed before it runs.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

import jinja2
import jinja2.utils

MAX_SOURCE = 1 << 18
"""Characters of a template; the longest of real ones have some 30,000."""
MAX_VALUE = 4_000_000
"""Characters or elements of one value, and of the rendered chat: more than any context holds."""
MAX_WORK = 64_000_000
"""Characters, elements and steps of a rendering, all together."""
MAX_SECONDS = 3.0
"""Processor time of the thread that renders; a real template takes milliseconds."""
MAX_BITS = 100_000
MAX_DEPTH = 200
"""Of lists in lists: Python's own hash of a deep tuple overruns the stack."""
MAX_WIDTH = 100_000
"""Of padding, in a method, a filter or a format."""

# Work between two looks at the clock.
_GLANCE = 20_000
_CONTAINERS = (list, tuple, set, frozenset, deque, KeysView, ValuesView, ItemsView)
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*\*")
_NUMBER = re.compile(r"\d+")


class TooMuchWorkError(jinja2.TemplateError):
    """A template does more than any real one."""


class WorkCount:
    """What one rendering has done so far."""

    def __init__(self) -> None:
        self.done = 0
        self._next_glance = 0
        self._end = time.thread_time() + MAX_SECONDS

    def spend(self, amount: int) -> None:
        """Count work that is about to be done."""
        self.done += amount
        if self.done > MAX_WORK:
            raise TooMuchWorkError(f"it does more than {MAX_WORK} steps of work")
        if self.done > self._next_glance:
            self._next_glance = self.done + _GLANCE
            if time.thread_time() > self._end:
                raise TooMuchWorkError(f"it takes more than {MAX_SECONDS:g} s")

    def make(self, size: int) -> None:
        """Count a value that is about to be made."""
        if size > MAX_VALUE:
            raise TooMuchWorkError(f"it makes a value of more than {MAX_VALUE} characters")
        self.spend(size)

    def size(self, value: Any) -> int:
        """Characters of a value as text, or more; what is in it twice counts twice."""
        if isinstance(value, str):
            return len(value)
        total, left = 0, [(value, 0)]
        while left:
            item, depth = left.pop()
            total += 4
            inside: Iterable[Any] = ()
            if isinstance(item, str | bytes | bytearray):
                total += len(item)
            elif isinstance(item, int):
                total += item.bit_length() // 3
            elif isinstance(item, Mapping):
                inside = (*item.keys(), *item.values())
            elif isinstance(item, _CONTAINERS):
                inside = item
            elif isinstance(item, jinja2.utils.Namespace):
                inside = (object.__getattribute__(item, "_Namespace__attrs"),)
            else:
                total += 60
            left += [(each, depth + 1) for each in inside]
            if total > MAX_VALUE:
                raise TooMuchWorkError(f"it makes a value of more than {MAX_VALUE} characters")
            if depth > MAX_DEPTH:
                raise TooMuchWorkError(f"it puts more than {MAX_DEPTH} lists into one another")
        self.spend(total)
        return total

    def checked(self, value: Any) -> Any:
        """A value that was made; a text's length costs nothing to know."""
        self.make(self.size(value))
        return value


def number(value: Any) -> int:
    """A width or count that a template gives, not below 0; one that is no number will fail by itself."""
    return max(0, value) if isinstance(value, int) else 0


def check_width(value: Any) -> int:
    """A width that pads a value."""
    if number(value) > MAX_WIDTH:
        raise TooMuchWorkError(f"it pads to {MAX_WIDTH} characters or more")
    return number(value)


def check_format(text: str) -> None:
    """No number in a format is a huge width; none is taken from the values."""
    wide = any(len(each) > 6 or int(each) > MAX_WIDTH for each in _NUMBER.findall(text))
    if wide or _PERCENT_WIDTH.search(text):
        raise TooMuchWorkError(f"it formats to {MAX_WIDTH} characters or more")


def replaced_size(text: str, old: str, new: str) -> int:
    """Characters after ``str.replace``."""
    count = text.count(old) if old else len(text) + 1
    return len(text) + count * max(0, len(new) - len(old))


def operate(work: WorkCount, operator: str, left: Any, right: Any) -> None:
    """Weigh an operator of two values before it runs."""
    work.spend(1)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**" and right > 0:
            bits = left.bit_length() * right
        if bits > MAX_BITS:
            raise TooMuchWorkError(f"it computes with numbers of more than {MAX_BITS} bits")
    elif operator == "*":
        for value, count in ((left, right), (right, left)):
            if isinstance(count, int):
                work.make(work.size(value) * number(count))
    elif operator == "+":
        work.make(work.size(left) + work.size(right))
    elif operator == "%" and isinstance(left, str | bytes):
        text = left if isinstance(left, str) else left.decode("latin-1")
        check_format(text)
        work.make(len(text) + text.count("%") * (MAX_WIDTH // 100 + work.size(right)))


Arguments = tuple[Any, ...]
# What a method of a text, of bytes or of a number is about to make, by name; gives the arguments.
Guard = Callable[[WorkCount, Any, Arguments], Arguments]


def _pad(work: WorkCount, owner: Any, args: Arguments) -> Arguments:
    work.make(work.size(owner) + check_width(args[0] if args else 0))
    return args


def _replace(work: WorkCount, owner: Any, args: Arguments) -> Arguments:
    if len(args) > 1 and all(isinstance(each, type(owner)) for each in args[:2]):
        work.make(replaced_size(owner, args[0], args[1]))
    return args


def _join(work: WorkCount, owner: Any, args: Arguments) -> Arguments:
    items = listed(work, args[0] if args else ())
    work.make(work.size(items) + len(items) * len(owner))
    return (items, *args[1:])


def _expand_tabs(work: WorkCount, owner: Any, args: Arguments) -> Arguments:
    work.make(work.size(owner) * max(8, number(args[0] if args else 8)))
    return args


def _translate(work: WorkCount, owner: Any, args: Arguments) -> Arguments:
    work.make(work.size(owner) * max(1, work.size(args[0] if args else "")))
    return args


def _to_bytes(work: WorkCount, _: Any, args: Arguments) -> Arguments:
    check_width(args[0] if args else 1)
    return args


METHODS: dict[str, Guard] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pad),
    "replace": _replace,
    "join": _join,
    "expandtabs": _expand_tabs,
    "translate": _translate,
    "to_bytes": _to_bytes,
}
# These take their arguments by name too, which the guards do not read.
NAMED = {"expandtabs", "replace", "to_bytes"}


def listed(work: WorkCount, values: Any) -> list[Any]:
    """What can be gone through, counted on the way."""
    items = []
    for value in values if isinstance(values, Iterable) else ():
        work.spend(1)
        items.append(value)
    return items


# What a filter is about to make, from its arguments by name: ``value`` is what is filtered.
FILTERS: dict[str, Callable[[WorkCount, dict[str, Any]], None]] = {
    "center": lambda work, a: work.make(work.size(a["value"]) + check_width(a["width"])),
    "indent": lambda work, a: work.make(
        work.size(a["s"])
        + (str(a["s"]).count("\n") + 1)
        * (len(a["width"]) if isinstance(a["width"], str) else check_width(a["width"]))
    ),
    "replace": lambda work, a: work.make(replaced_size(str(a["s"]), str(a["old"]), str(a["new"]))),
    "format": lambda work, a: operate(work, "%", str(a["value"]), a.get("kwargs") or a["args"]),
    "wordwrap": lambda work, a: work.make(
        (work.size(a["s"]) + 1) * max(1, len(a["wrapstring"] or ""))
    ),
    "batch": lambda work, a: work.make(check_width(a["linecount"])),
    "slice": lambda work, a: work.make(check_width(a["slices"])),
    "round": lambda work, a: operate(work, "**", 10, abs(number(abs(a["precision"])))),
    "tojson": lambda work, a: work.make(
        work.size(a["value"])
        * (1 + min(check_width(a["indent"] or 0), 1000) + work.size(a["separators"] or "") // 4)
    ),
    "sum": lambda work, a: _sum(a["start"]),
    "urlize": lambda work, a: work.make(
        work.size(a["value"]) * (16 + work.size(a["target"] or "") + work.size(a["rel"] or ""))
    ),
}


def _sum(start: Any) -> None:
    if not isinstance(start, int | float):
        raise TooMuchWorkError("it sums up lists, which takes the square of their length")
