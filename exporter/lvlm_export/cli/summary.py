"""Facts of a manifest as plain data for tables and JSON: tokens, bytes, key-value memory."""

from __future__ import annotations

from typing import Any

from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest
from lvlm_runtime.bundle.route import (
    budget_graphs,
    cache_bytes,
    cache_rows,
    route,
    shared_graphs,
    visual_tokens,
)


def token_counts(manifest: Manifest, budget: Budget, part: LayoutBudget) -> list[tuple[str, int]]:
    """Visual tokens at each stage: per tile in the vision encoder, per image in the decoder."""
    counts = visual_tokens(route(manifest, budget, part))
    return [(name, tokens) for name, _, tokens in counts]


def count_arrows(manifest: Manifest, budget: Budget, part: LayoutBudget) -> tuple[str, str]:
    """``196 → 162 → 94`` for a tile in the vision encoder, and for an image in the decoder."""
    counts = visual_tokens(route(manifest, budget, part))
    of = {
        unit: [str(tokens) for _, per, tokens in counts if per == unit]
        for unit in ("tile", "image")
    }
    return " → ".join(of["tile"]), " → ".join(of["image"])


def precision_words(manifest: Manifest) -> str:
    """``float32, weights of vision int8, decoder int4, lm_head int8``."""
    parts = ", ".join(f"{part} {name}" for part, name in manifest.quantised.items())
    return f"{manifest.precision}, weights of {parts}" if parts else manifest.precision


def weight_bytes(manifest: Manifest) -> int:
    """Size of the shared weight file."""
    return manifest.files[WEIGHTS].size_bytes


def graph_bytes(manifest: Manifest) -> int:
    """Size of the subgraphs that every ratio uses."""
    return sum(manifest.files[name].size_bytes for name in shared_graphs(manifest))


def budget_bytes(manifest: Manifest, *budgets: Budget) -> int:
    """Size of the reducers and packers of some budgets; what they share counts once."""
    names = {name for budget in budgets for name in budget_graphs(manifest, budget)}
    return sum(manifest.files[name].size_bytes for name in names)


def total_bytes(manifest: Manifest) -> int:
    """Size of the bundle without its manifest."""
    return sum(ref.size_bytes for ref in manifest.files.values())


def kv_bytes(manifest: Manifest, part: LayoutBudget, text_tokens: int, answer_tokens: int) -> int:
    """Key-value memory of a request with one image, as the runtime allocates it."""
    from lvlm_runtime.bundle.element_types import numpy_dtype

    rows = cache_rows(manifest, part, 1, text_tokens, answer_tokens)
    return cache_bytes(manifest, rows, numpy_dtype(manifest.precision).itemsize)


def budget_record(
    manifest: Manifest, budget: Budget, part: LayoutBudget, text_tokens: int, answer_tokens: int
) -> dict[str, Any]:
    """One budget and layout for ``inspect --json``."""
    counts = token_counts(manifest, budget, part)
    return {
        "ratio": budget.ratio,
        "achieved_ratio": part.achieved,
        "layout": part.layout,
        "visual_tokens": [{"stage": stage, "tokens": tokens} for stage, tokens in counts],
        "graphs": sorted(budget_graphs(manifest, budget)),
        "graphs_bytes": budget_bytes(manifest, budget),
        "kv_cache_bytes": kv_bytes(manifest, part, text_tokens, answer_tokens),
    }
