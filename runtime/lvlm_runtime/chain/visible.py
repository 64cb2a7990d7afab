"""Which rows of its caches a new row of the decoder sees, where it is not all before it.

PaliGemma's prompt sees the whole of itself, Gemma 3's visual tokens see the whole of their picture;
what comes after a prompt sees what is before it. Such rows follow one another, and nothing behind them
is seen, so one number a row says it: how many rows of the caches it sees. Reducers take rows out and
move none, so this holds at every decoder layer.
Source: arXiv:2407.07726 section 3.1, arXiv:2503.19786 section 2; transformers 5.23, ``models/paligemma``,
``models/gemma3``.
"""

from __future__ import annotations

import numpy as np

from lvlm_runtime.bundle.manifest import PICTURES, PREFIX
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
