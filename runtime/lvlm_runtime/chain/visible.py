"""Which rows of its caches a new row of the decoder sees, where it is not all before it.

PaliGemma's prompt sees the whole of itself, Gemma 3's visual tokens see the whole of their picture;
what comes after a prompt sees what is before it. Such rows follow one another, and nothing behind them
is seen, so one number a row says it: how many rows of the caches it sees. In layers with a window another
says which is the first of them; a window counts positions, and a token that stays keeps its own, so where
tokens have left it holds fewer rows. Reducers take rows out and move none, so this holds at every layer.
Source: arXiv:2407.07726 section 3.1, arXiv:2503.19786 section 2; transformers 5.23, ``models/paligemma``,
``models/gemma3``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvlm_runtime.bundle.manifest import PICTURES, PREFIX, SEEN_FROM, SEEN_TO
from lvlm_runtime.chain.kv_cache import LayerGroup
from lvlm_runtime.prompt.sequence import Indices


def seen_before(start: int, count: int) -> Indices:
    """``[S]``, rows that each of ``count`` new rows sees behind ``start`` filled ones: itself is the last.

    Example:
        >>> seen_before(5, 3).tolist()
        [6, 7, 8]
    """
    return np.arange(start + 1, start + count + 1, dtype=np.int64)


def seen_in_prompt(attention: str, count: int, visual: Indices) -> Indices:
    """``[S]``, rows that each of the ``count`` rows of a whole prompt sees.

    Args:
        attention: As ``TextSpec`` has it.
        count: S.
        visual: ``[n, V]``, where the tokens of each picture stand, one behind the other.

    Example:
        >>> seen_in_prompt("pictures", 6, np.array([[1, 2], [4, 5]])).tolist()
        [1, 3, 3, 4, 6, 6]
        >>> seen_in_prompt("prefix", 4, np.array([[0, 1]])).tolist()
        [4, 4, 4, 4]
    """
    if attention == PREFIX:
        return np.full(count, count, np.int64)
    seen = seen_before(0, count)
    if attention == PICTURES and visual.shape[1]:
        seen[visual] = visual[:, -1:] + 1
    return seen


def first_in_window(held: Indices, new: Indices, window: int) -> Indices:
    """``[S]``, the first row of the caches that each new row sees in a layer with a window.

    Args:
        held: ``[R]`` positions of the rows that the caches hold, never falling.
        new: ``[S]`` positions of the new rows, which stand behind them.
        window: Positions that a row sees, its own included.

    Example:
        >>> first_in_window(np.array([0, 1, 7]), np.array([8, 9]), 3).tolist()
        [2, 2]
    """
    every = np.concatenate([held, new])
    assert (np.diff(every) >= 0).all(), "rows stand in the order of their positions"
    return np.searchsorted(every, new - window, side="right").astype(np.int64)


def seen_rows(
    inputs: Sequence[str],
    group: LayerGroup,
    count: int,
    seen: Indices | None,
    places: Indices | None,
    window: int,
) -> dict[str, Indices]:
    """What a decoder subgraph takes, of these, for ``count`` new rows; their positions are noted.

    Args:
        inputs: Of the subgraph, by name.
        group: Its caches.
        count: S.
        seen: ``[S]``, rows that each sees; None for those before it.
        places: ``[S]`` positions of the new rows, for layers with a window.
        window: As of ``first_in_window``.
    """
    found: dict[str, Indices] = {}
    if SEEN_TO in inputs:
        found[SEEN_TO] = seen_before(group.length, count) if seen is None else seen
    if SEEN_FROM in inputs:
        assert places is not None, "windows ask for positions"
        found[SEEN_FROM] = first_in_window(group.positions[: group.length], places, window)
        group.positions[group.length : group.length + count] = places
    return found
