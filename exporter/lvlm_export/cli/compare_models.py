"""``plan --compare-models``: a smaller model with more tokens, or a larger one with fewer?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm_export.cli.console import say
from lvlm_profiles.cost.request import TokenPath, prefill_works, text_weight_elements, total
from lvlm_profiles.cost.scaling import (
    ALPHA,
    BETA,
    LIMITS,
    Entry,
    best_tokens,
    cost_flops,
    error_ratio,
    relative_error,
    tokens_at_equal_cost,
)
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

# The shapes of a model by name.
Find = Callable[[str], ModelDims]


@dataclass(frozen=True)
class Compared:
    """A model beside the first one.

    Attributes:
        entry: Model and visual tokens.
        dims: Its shapes.
        law_flops: The law's cost of a prompt, 2 N (Q + V).
        request_flops: Of the vision encoder, the prompt's layers and the head, by the cost model.
        error: Relative to the first, of the part above the irreducible.
        equal_tokens: Visual tokens at which it costs what the first does; None where none.
        equal_error: The error there, relative to the first; None likewise.
    """

    entry: Entry
    dims: ModelDims
    law_flops: float
    request_flops: int
    error: float
    equal_tokens: float | None
    equal_error: float | None


def show_comparison(words: Sequence[str], question: int, find: Find, as_json: bool) -> None:
    """Print the comparison; UsageError for words that name no model or no count."""
    from lvlm_export.cli.console import echo_json, show_table

    if len(words) < 2:
        raise UsageError(
            "--compare-models takes two models or more, each as MODEL@TOKENS:"
            " shape:llava-onevision-0.5b@729 shape:llava-1.5-7b@36"
        )
    models = compare_all([parse(word) for word in words], question, find)
    if as_json:
        echo_json(record(models, question))
        return
    say(f"question {question} text tokens; error relative to {models[0].entry.name}")
    show_table(table(models), ("error there", "2N(Q+V) GFLOP"))
    best = best_tokens(question)
    say(
        f"law     error = A N^-{ALPHA} T^-{BETA} + D (arXiv:2411.03312); at any fixed compute 2N(Q+V)"
        f" it is least at {best:.0f} visual tokens for this question"
    )
    for limit in LIMITS:
        say(f"limit   {limit}")


def parse(word: str) -> tuple[str, int]:
    """``MODEL@TOKENS``."""
    match = re.fullmatch(r"(.+)@([1-9]\d{0,6})", word)
    if match is None:
        raise UsageError(
            f"{word!r} is not MODEL@TOKENS; write shape:llava-1.5-7b@36, a model and the visual"
            " tokens per image that its language model sees"
        )
    return match[1], int(match[2])


def compare_all(models: Sequence[tuple[str, int]], question: int, find: Find) -> list[Compared]:
    """Every model beside the first."""
    found: list[Compared] = []
    for name, visual in models:
        dims = find(name)
        entry = Entry(name, text_weight_elements(dims.text) / 1e9, visual)
        base = found[0].entry if found else entry
        equal = tokens_at_equal_cost(entry.billions, base, question)
        path = TokenPath("none", 1, 1, question, 1, visual, False, ())
        equal_error = None
        if equal >= 1:
            equal_error = error_ratio(entry.billions, equal, base.billions, base.visual)
        found.append(
            Compared(
                entry=entry,
                dims=dims,
                law_flops=cost_flops(entry.billions, question, visual),
                request_flops=total(prefill_works(dims, path)).flops,
                error=relative_error(entry, base),
                equal_tokens=equal if equal >= 1 else None,
                equal_error=equal_error,
            )
        )
    return found


def table(models: Sequence[Compared]) -> Table:
    """One row per model."""
    from lvlm_export.cli.console import new_table

    numbers = (
        *("N billion", "tokens", "2N(Q+V) GFLOP", "request GFLOP", "error"),
        *("tokens at equal compute", "error there"),
    )
    result = new_table("model", *numbers, "", right=numbers)
    for each in models:
        equal = "none" if each.equal_tokens is None else f"{each.equal_tokens:.0f}"
        there = "" if each.equal_error is None else f"{each.equal_error:.3f}"
        result.add_row(
            each.entry.name,
            f"{each.entry.billions:.2f}",
            str(each.entry.visual),
            f"{each.law_flops / 1e9:.0f}",
            f"{each.request_flops / 1e9:.0f}",
            f"{each.error:.3f}",
            equal,
            there,
            "" if each.entry.inside else "outside the law's data",
        )
    return result


def record(models: Sequence[Compared], question: int) -> dict[str, Any]:
    """The comparison as plain JSON types."""
    return {
        "question_tokens": question,
        "alpha": ALPHA,
        "beta": BETA,
        "best_visual_tokens_at_fixed_compute": best_tokens(question),
        "models": [
            {
                "model": each.entry.name,
                "language_model_billions": each.entry.billions,
                "visual_tokens": each.entry.visual,
                "law_flops": each.law_flops,
                "request_flops": each.request_flops,
                "relative_error": each.error,
                "visual_tokens_at_equal_compute": each.equal_tokens,
                "relative_error_at_equal_compute": each.equal_error,
                "inside_fitted_data": each.entry.inside,
            }
            for each in models
        ],
        "limits": list(LIMITS),
    }
