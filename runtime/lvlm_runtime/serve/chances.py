"""How probable the tokens of an answer were, read beside sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.prompt.sampling import LogitsProcessor
from lvlm_runtime.serve.job import TokenChance


class TokenChances:
    """Looks at the scores that a token is chosen by: behind the checkpoint's rules, before temperature.

    Args:
        top: Most probable tokens to tell with each; None to look at nothing.
    """

    def __init__(self, top: int | None) -> None:
        self.top = top
        self._scores: NDArray[np.float32] | None = None

    @property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """What sampling calls with every token's scores."""
        return () if self.top is None else (self._look,)

    def of(self, token_id: int) -> TokenChance | None:
        """Of the token that was chosen last."""
        if self.top is None or self._scores is None:
            return None
        scores = self._scores.astype(np.float64)
        peak = scores.max()
        logs = scores - (peak + np.log(np.exp(scores - peak).sum()))
        best = np.argsort(-logs, kind="stable")[: self.top]
        top = tuple((int(each), float(logs[each])) for each in best if np.isfinite(logs[each]))
        return TokenChance(token_id, float(logs[token_id]), top)

    def _look(self, _ids: Sequence[int], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        self._scores = scores.copy()
        return scores
