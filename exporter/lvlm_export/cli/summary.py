"""What a manifest says, as plain data for tables and JSON: tokens, bytes, key-value memory."""

from __future__ import annotations

from typing import Any

from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest, cache_size_bytes


def token_counts(manifest: Manifest, budget: Budget, part: LayoutBudget) -> list[tuple[str, int]]:
    """Visual tokens at each stage: per tile in the vision encoder, per image in the decoder."""
    counts = [("vision", manifest.vision_tokens)]
    counts += [(cut.site, cut.tokens_out) for cut in budget.vision]
    if part.projected is not None:
        counts.append(("projected", part.projected.tokens_in))
    counts.append(("decoder", part.tokens_in))
    return counts + [(cut.site, cut.tokens_out) for cut in part.decoder]


def arrows(manifest: Manifest, budget: Budget, part: LayoutBudget) -> tuple[str, str]:
    """``196 → 162 → 94`` for a tile in the vision encoder, and for an image in the decoder."""
    vision = [manifest.vision_tokens, *(cut.tokens_out for cut in budget.vision)]
    before = [] if part.projected is None else [part.projected.tokens_in]
    decoder = [*before, part.tokens_in, *(cut.tokens_out for cut in part.decoder)]
    return " → ".join(map(str, vision)), " → ".join(map(str, decoder))


def weight_bytes(manifest: Manifest) -> int:
    """Size of the shared weight file."""
    return manifest.files[WEIGHTS].size_bytes


def graph_bytes(manifest: Manifest) -> int:
    """Size of the subgraphs that every ratio uses."""
    names = [stage.graph for stage in (*manifest.vision, *manifest.decoder)]
    names += [manifest.assemble, *manifest.lm_head]
    names += [manifest.projector.graph] if manifest.projector is not None else []
    return sum(manifest.files[name].size_bytes for name in names)


def budget_files(budget: Budget) -> set[str]:
    """Graphs that only this ratio needs (or shares with one of equal counts)."""
    names = {cut.graph for cut in budget.vision}
    for part in budget.layouts:
        names |= {cut.graph for cut in part.decoder}
        names |= {part.projected.graph} if part.projected is not None else set()
        names |= {part.packer} if part.packer is not None else set()
    return names


def budget_bytes(manifest: Manifest, *budgets: Budget) -> int:
    """Size of the reducers and packers of some budgets; what they share counts once."""
    names = set().union(*map(budget_files, budgets))
    return sum(manifest.files[name].size_bytes for name in names)


def total_bytes(manifest: Manifest) -> int:
    """Size of the bundle without its manifest."""
    return sum(ref.size_bytes for ref in manifest.files.values())


def kv_bytes(manifest: Manifest, part: LayoutBudget, text_tokens: int, answer_tokens: int) -> int:
    """Key-value memory of a request with one image, as the runtime allocates it."""
    from lvlm_runtime.bundle.element_types import numpy_dtype

    dtype = numpy_dtype(manifest.precision)
    after = {cut.site: cut.tokens_out for cut in part.decoder}
    visual, total = part.tokens_in, 0
    for stage in manifest.decoder:
        capacity = text_tokens + visual + answer_tokens
        total += cache_size_bytes(stage, capacity, manifest.text, dtype)
        visual = after.get(stage.site or "", visual)
    return total


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
        "graphs": sorted(budget_files(budget)),
        "graphs_bytes": budget_bytes(manifest, budget),
        "kv_cache_bytes": kv_bytes(manifest, part, text_tokens, answer_tokens),
    }
