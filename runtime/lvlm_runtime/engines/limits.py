"""The largest request that a bundle's engines take, and the memory of its caches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest
from lvlm_runtime.bundle.route import cache_rows
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.anyres import MULTI, SINGLE, kind_of

# Smallest, best and largest size along one axis.
SizeRange = tuple[int, int, int]


@dataclass(frozen=True)
class Limits:
    """The largest request that the engines take.

    Attributes:
        text_tokens: Text of a prompt.
        answer_tokens: Tokens of an answer.
        images: Pictures of a prompt.
    """

    text_tokens: int
    answer_tokens: int
    images: int


def default_limits(manifest: Manifest) -> Limits:
    """Room for a question and an answer within the model's positions, and one picture."""
    context = manifest.text.context_length
    visual = max((part.tokens_in for _, part in reachable_budgets(manifest, 1)), default=0)
    answer = max(1, min(512, (context - visual) // 3))
    return Limits(max(1, min(512, context - visual - answer)), answer, 1)


def check_limits(manifest: Manifest, limits: Limits) -> None:
    """UsageError for a request that has more positions than the model."""
    context = manifest.text.context_length
    if min(limits.text_tokens, limits.answer_tokens, limits.images) < 1:
        raise UsageError("text tokens, answer tokens and images must be at least 1")
    for _, part in reachable_budgets(manifest, limits.images):
        images = images_of(part.layout, limits)[2]
        visual = images * part.tokens_in
        free = context - visual - limits.answer_tokens
        if limits.text_tokens > free:
            hint = f"--text-tokens {free} fits" if free > 0 else "fewer --images or --answer-tokens"
            raise UsageError(
                f"{limits.text_tokens} text, {visual} visual and {limits.answer_tokens} answer"
                f" tokens are more than the model's {context} positions; {hint}"
            )


def reachable_budgets(manifest: Manifest, images: int) -> Iterator[tuple[Budget, LayoutBudget]]:
    """Budgets and layouts that a request of at most ``images`` pictures can take."""
    for budget in manifest.budgets:
        for part in budget.layouts:
            if images > 1 or part.layout != MULTI:
                yield budget, part


def images_of(layout: str, limits: Limits) -> SizeRange:
    """Pictures that a layout is used for in one call; one picture is the common case.

    Of several, those that were not seen before, so one alone too.
    """
    if kind_of(layout) == SINGLE:
        return 1, 1, 1
    return (1, 2, limits.images) if layout == MULTI else (1, 1, limits.images)


def capacities_of(manifest: Manifest, limits: Limits) -> dict[str, int]:
    """Rows of each decoder subgraph's caches: its longest prompt and the answer."""
    found: dict[str, int] = {}
    for _, part in reachable_budgets(manifest, limits.images):
        images = images_of(part.layout, limits)[2]
        rows = cache_rows(manifest, part, images, limits.text_tokens, limits.answer_tokens)
        found = {name: max(count, found.get(name, 0)) for name, count in rows.items()}
    return found
