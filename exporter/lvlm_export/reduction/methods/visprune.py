"""VisPruner: half of the tokens by the CLS token's attention, half by removing duplicates.

Source: the authors' code (@aefa01ad, llava_arch.py:141-186); shared METHODS §14. Half of the K
tokens are the patches that the CLS token attends most. From the others the most duplicated leave,
8 per step: they go by turns into two sets, and the 8 of the first set with the nearest duplicate
in the second leave, until the other half of K is left. Tokens are pruned, never merged. The steps
are a constant number, so the graph is unrolled.

Differences: the tokens go into the sets in raster order (the authors' first order is that of
attention, where one rounding would put every later token into the other set), and what stays keeps
its place on the tower's grid as its position. Without a CLS token the score is the attention that
a patch receives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_export.reduction.method import Method, ReducerShape, Site

if TYPE_CHECKING:
    from lvlm_export.reduction.selectors import Selector

REMOVED_PER_STEP = 8


def split_budget(keep: int) -> tuple[int, int]:
    """Important and diverse tokens of a budget; at least one is important."""
    important = max(1, keep // 2)
    return important, keep - important


def removals_per_step(tokens: int, keep: int) -> tuple[int, ...]:
    """Duplicates that leave in every step on the way from ``tokens`` to ``keep``."""
    steps = []
    while tokens > keep:
        # Only the first set, half of them, can lose tokens.
        steps.append(min(REMOVED_PER_STEP, tokens - keep, (tokens + 1) // 2))
        tokens -= steps[-1]
    return tuple(steps)


class VisPrune(Method):
    """VisPruner after the last vision layer."""

    name = "visprune"
    summary = "keep the most attended features, and of the rest the least duplicated"
    paper = "arXiv:2412.01818"
    cost = "one attention row (without CLS all pairs), all cosines once, (N - K)/8 small TopK"
    acts_in = "after the vision tower"

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return (Site("features", vision_layers),)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        from lvlm_export.reduction.selectors.visprune import ImportantAndDiverse

        important, diverse = split_budget(shape.tokens_out)
        return ImportantAndDiverse(
            important, removals_per_step(shape.tokens_in - important, diverse)
        )


METHOD = VisPrune()
