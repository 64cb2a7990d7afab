"""The inference scaling law of vision-language models: fewer tokens or a smaller model?

    Err(N, T) = A N^-alpha T^-beta + D,   cost = 2 N (Q + V)

N is the language model's size in billions of parameters, T the visual tokens it sees, Q the
question's tokens and V the visual ones. Source: arXiv:2411.03312 (ICLR 2025) and the authors' code
(locuslab/llava-token-compression @bdedebdf, scaling_law_code/objective.py:47-57, 138, 169-170);
shared METHODS §4. A and D are not published with the exponents, and D is hardly identified by the
data, so only ratios of the part above D are predicted here.
"""

from __future__ import annotations

from dataclasses import dataclass

ALPHA, BETA = 0.077, 0.015
LIMITS = (
    "fitted on LLaVA-style models over Qwen-1.5 with 0.5 to 7 billion parameters and 1 to 576 visual"
    " tokens; sizes and counts outside are extrapolated",
    "averaged over general benchmarks, not for reading text (OCR): a fit of the authors' OCR table"
    " gives alpha 0.028 and beta 0.039, and then tokens matter more than size",
    "fitted with V alone, although its axis of compute counts the question too; the vision encoder"
    " and a trained projector are in neither",
    "relative errors are of the part above the irreducible error D, which the data hardly identify",
)
# The grid of the fit.
SIZES, TOKENS = (0.5, 7.0), (1, 576)


@dataclass(frozen=True)
class Entry:
    """A model at a number of visual tokens.

    Attributes:
        name: Title in tables.
        billions: Parameters of its language model, token table included.
        visual: Visual tokens that it sees.
    """

    name: str
    billions: float
    visual: int

    @property
    def inside(self) -> bool:
        """Within the sizes and counts that the law was fitted on."""
        size = SIZES[0] * 0.9 <= self.billions <= SIZES[1] * 1.15
        return size and TOKENS[0] <= self.visual <= TOKENS[1]


def cost_flops(billions: float, question: int, visual: float) -> float:
    """The law's cost of a prompt: ``2 N (Q + V)``, multiplications and additions each counted."""
    return 2e9 * billions * (question + visual)


def relative_error(entry: Entry, base: Entry) -> float:
    """``(Err - D)`` of one over that of another."""
    return error_ratio(entry.billions, entry.visual, base.billions, base.visual)


def error_ratio(billions: float, visual: float, base_billions: float, base_visual: float) -> float:
    """As ``relative_error``, for numbers."""
    size, count = billions / base_billions, visual / base_visual
    return float(size**-ALPHA * count**-BETA)


def tokens_at_equal_cost(billions: float, base: Entry, question: int) -> float:
    """Visual tokens for which a model of another size costs what ``base`` does.

    Below 1 there are none: the question alone costs more.
    """
    return base.billions / billions * (question + base.visual) - question


def best_tokens(question: int, alpha: float = ALPHA, beta: float = BETA) -> float | None:
    """Visual tokens of the best model at a fixed cost, whatever the cost.

    Minimising ``N^-alpha V^-beta`` at ``N (Q + V)`` fixed gives ``V = Q beta / (alpha - beta)``,
    at least 1. None where ``beta >= alpha``: then more tokens on a smaller model are always better.
    """
    if beta >= alpha:
        return None
    return max(1.0, question * beta / (alpha - beta))
