"""``lvlm-export inspect``: what is in a bundle. Imports neither torch nor a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument, json_option, request_options, wide_option

if TYPE_CHECKING:
    from lvlm_runtime.bundle.manifest import Manifest


@click.command(short_help="Show what is in a bundle.")
@bundle_argument
@request_options
@wide_option
@json_option
def inspect(bundle: Path, text_tokens: int, answer_tokens: int, as_json: bool) -> None:
    """Check every file of a bundle and show its chain, token counts, sizes and memory."""
    from lvlm_runtime.bundle.bundle import Bundle

    manifest = Bundle.open(bundle, full=True).manifest
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(record(manifest, bundle, text_tokens, answer_tokens))
    else:
        show(manifest, bundle, text_tokens, answer_tokens)


def chain(manifest: Manifest) -> list[str]:
    """Stages and sites in the order a request passes them."""
    from lvlm_runtime.bundle.route import step_names

    *names, head = step_names(manifest)
    splits = len(manifest.lm_head)
    return [*names, head if splits == 1 else f"{head} in {splits} parts"]


def record(
    manifest: Manifest, bundle: Path, text_tokens: int, answer_tokens: int
) -> dict[str, Any]:
    """Everything as plain JSON types."""
    from lvlm_export.cli import summary
    from lvlm_runtime.bundle.manifest import to_json

    return {
        "bundle": str(bundle),
        "model": manifest.model,
        "family": manifest.family,
        "method": manifest.method,
        "placement": to_json(manifest.placement),
        "precision": manifest.precision,
        "quantised": manifest.quantised,
        "target": manifest.target,
        "dialect": manifest.dialect,
        "kv_layout": manifest.kv_layout,
        "context_length": manifest.text.context_length,
        "chain": chain(manifest),
        "text_tokens": text_tokens,
        "answer_tokens": answer_tokens,
        "budgets": [
            summary.budget_record(manifest, budget, part, text_tokens, answer_tokens)
            for budget in manifest.budgets
            for part in budget.layouts
        ],
        "weights_bytes": summary.weight_bytes(manifest),
        "graphs_bytes": summary.graph_bytes(manifest),
        "bundle_bytes": summary.total_bytes(manifest),
        "files": {name: ref.size_bytes for name, ref in manifest.files.items()},
        "versions": manifest.versions,
        "content_key": manifest.content_key,
        "checkpoint_key": manifest.checkpoint_key,
    }


def by_hand(manifest: Manifest) -> str:
    """What a user gave by hand: sites, share, counts; empty where all is as published."""
    given = manifest.placement
    words = ["sites"] if given.sites else []
    words += [f"a share of {given.vision_share:g}"] if given.vision_share is not None else []
    words += [f"the counts of {budget.ratio:g}" for budget in given.budgets]
    return f", by hand: {', '.join(words)}" if words else ""


def show(manifest: Manifest, bundle: Path, text_tokens: int, answer_tokens: int) -> None:
    """Everything for people."""
    from lvlm_export.cli import summary
    from lvlm_export.cli.console import show_table, size

    lines = {
        "bundle": f"{bundle} ({size(summary.total_bytes(manifest))}, every file intact)",
        "model": f"{manifest.model}, family {manifest.family}",
        "method": manifest.method + by_hand(manifest),
        "precision": f"{summary.precision_words(manifest)}, for {manifest.target}, dialect"
        f" {manifest.dialect}",
        "context": f"{manifest.text.context_length} positions for prompt and answer",
        "chain": " → ".join(chain(manifest)),
        "weights": f"{size(summary.weight_bytes(manifest))}, stored once for all ratios",
        "graphs": f"{size(summary.graph_bytes(manifest))} for all ratios",
        "built by": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    for label, text in lines.items():
        say(f"{label:<10}{text}")
    show_table(budget_table(manifest, text_tokens, answer_tokens), ("layout", "own graphs"))
    say(
        f"KV cache: one image, {text_tokens} text tokens (--text-tokens) and {answer_tokens} of"
        " answer (--answer-tokens)"
    )


def budget_table(manifest: Manifest, text_tokens: int, answer_tokens: int) -> Any:
    """One row per ratio and tile layout."""
    from lvlm_export.cli import summary
    from lvlm_export.cli.console import new_table, size

    table = new_table(
        "ratio",
        "achieved",
        "layout",
        "vision, per tile",
        "decoder, per image",
        "own graphs",
        "KV cache",
        right=("ratio", "achieved", "own graphs", "KV cache"),
    )
    for budget in manifest.budgets:
        for part in budget.layouts:
            table.add_row(
                f"{budget.ratio:g}",
                f"{part.achieved:.3f}",
                part.layout,
                *summary.count_arrows(manifest, budget, part),
                size(summary.budget_bytes(manifest, budget)),
                size(summary.kv_bytes(manifest, part, text_tokens, answer_tokens)),
            )
    return table
