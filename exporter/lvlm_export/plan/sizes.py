"""Picture sizes that tile layouts are made for."""

from __future__ import annotations

from collections.abc import Sequence

AUTO = "auto"
ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""Of ``AUTO``, width to height: what cameras and screens have."""


def usual_sizes(tile: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of a picture of each of ASPECTS whose longer edge is two tiles.

    Args:
        tile: Edge of a tile in pixels.

    Example:
        >>> usual_sizes(384)[:2]
        ((768, 768), (576, 768))
    """
    edge = 2 * tile
    return tuple(
        (round(edge * high / max(wide, high)), round(edge * wide / max(wide, high)))
        for wide, high in ASPECTS
    )


def picture_sizes(given: Sequence[tuple[int, int] | str], tile: int) -> list[tuple[int, int]]:
    """What was given, each once, with the sizes that AUTO stands for."""
    sizes: dict[tuple[int, int], None] = {}
    for each in given:
        sizes |= dict.fromkeys(usual_sizes(tile) if isinstance(each, str) else (each,))
    return list(sizes)
