"""What stands in the place of a value that could not be measured: the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """There is no value, and this is why: the other half of a return type ``Meter | Missing``.

    A type of its own and not a bare string, so that a reason is never taken for a value.

    Attributes:
        reason: For a person; reports print it behind "not measured, ", so it begins in lower case
            and has no full stop.

    Example:
        >>> found: int | Missing = Missing("no sensor under /sys/class/hwmon")
        >>> found.reason if isinstance(found, Missing) else found
        'no sensor under /sys/class/hwmon'
    """

    reason: str
