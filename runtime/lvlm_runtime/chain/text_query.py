"""The question as a trained projector reads it: one pass of the decoder over the text alone.

QueCC condenses a picture by the last hidden state of the same language model on the question
(arXiv:2411.03312). The decoder's own graphs compute it, without a reducer and without keeping a
key-value cache; the state is kept per question, as several pictures or turns have the same one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.errors import UsageError

# A hidden state is a few kilobytes.
KEPT = 256
Row = NDArray[np.floating]


class TextQuery:
    """Last hidden states ``[1, 1, C]`` of questions; the least recently used is dropped first.

    Args:
        compute: From token ids to the row, before the final norm.
        kept: Questions whose states are kept.
    """

    def __init__(self, compute: Callable[[Sequence[int]], Row], kept: int = KEPT) -> None:
        self.compute = compute
        self.kept = kept
        self.known: OrderedDict[tuple[int, ...], Row] = OrderedDict()

    def __call__(self, token_ids: Sequence[int] | None) -> Row:
        """The row of a question; UsageError where there is none."""
        if not token_ids:
            raise UsageError(
                "this bundle's projector reads the question and none was given; give a prompt, or"
                " query_ids where the prompt is given as tokens"
            )
        key = tuple(token_ids)
        if key not in self.known:
            self.known[key] = self.compute(key)
            if len(self.known) > self.kept:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]
