"""The question as a trained projector reads it: one pass of the decoder over the text alone.

QueCC condenses a picture by the last hidden state of the same language model on the question
(arXiv:2411.03312). The decoder's own graphs compute it, without a reducer and without keeping a
key-value cache; the answer is kept per question, as several pictures or turns ask the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.errors import UsageError
from lvlm_runtime.measure import Recorder

if TYPE_CHECKING:
    from lvlm_runtime.chain import Chain

# A hidden state is a few kilobytes.
KEPT = 256
Row = NDArray[np.floating]


def read_question(chain: Chain, token_ids: Sequence[int]) -> Row:
    """The last row ``[1, 1, C]`` at the end of the decoder, of text alone; its caches are let go."""
    count, backend, silent = len(token_ids), chain.backend, Recorder()
    hidden = backend.put(chain.embeddings[list(token_ids)][None])
    positions = backend.put(np.arange(count, dtype=np.int64)[None])
    for stage in chain.manifest.decoder:
        group = chain._allocate(stage, count)
        hidden, _ = chain._run_stage(stage, group, hidden, positions, silent, "prefill")
    # A copy, so that the rows of the whole question are not kept.
    row: Row = backend.fetch(hidden)[:, -1:].copy()
    return row


class TextQuery:
    """Last hidden states ``[1, 1, C]`` of questions, the least recently asked forgotten first.

    Args:
        compute: From token ids to the row, before the final norm.
        kept: Questions that are remembered.
    """

    def __init__(self, compute: Callable[[Sequence[int]], Row], kept: int = KEPT) -> None:
        self.compute = compute
        self.kept = kept
        self.known: OrderedDict[tuple[int, ...], Row] = OrderedDict()

    def __call__(self, token_ids: Sequence[int] | None) -> Row:
        """The row of a question; UsageError where there is none."""
        if not token_ids:
            raise UsageError(
                "this bundle's projector reads the question and there is none; give a prompt, or"
                " query_ids where the prompt is given as tokens"
            )
        key = tuple(token_ids)
        if key not in self.known:
            self.known[key] = self.compute(key)
            if len(self.known) > self.kept:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]
