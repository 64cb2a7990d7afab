"""From a manifest and a request to the token counts that the cost model takes."""

from __future__ import annotations

from lvlm_profiles.shapes.dims import Cut, TokenPath
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest
from lvlm_runtime.bundle.route import Step, route


def token_path(
    manifest: Manifest,
    budget: Budget,
    layout: LayoutBudget,
    text_tokens: int,
    answer_tokens: int,
    images: int = 1,
) -> TokenPath:
    """Tokens of a request at every place of a bundle's chain.

    Args:
        manifest: The bundle's.
        budget: One of its budgets.
        layout: That budget's part for the request's tile layout.
        text_tokens: Text of the prompt.
        answer_tokens: Answer, its first token included.
        images: Pictures; 0 for a request of text alone.
    """
    tiles = next(each.tiles for each in manifest.layouts if each.name == layout.layout)
    projector = manifest.projector
    return TokenPath(
        method=manifest.method,
        images=images,
        tiles=images * tiles,
        text_tokens=text_tokens,
        answer_tokens=answer_tokens,
        image_tokens=layout.tokens_projected,
        packed=layout.packer is not None,
        cuts=_cuts(route(manifest, budget, layout)),
        condensed=projector is not None,
        sized=manifest.sized,
        group=manifest.group,
        in_order=layout.in_order,
        # The question alone, as near as the prompt's text.
        query_tokens=text_tokens if projector is not None and projector.reads_text else 0,
    )


def _cuts(steps: tuple[Step, ...]) -> tuple[Cut, ...]:
    """All cuts of the chain; where this budget reduces nothing, as many tokens leave as enter."""
    reduced = {step.name for step in steps if step.kind == "reducer"}
    cuts = []
    for step in steps:
        site = None if step.subgraph is None else step.subgraph.site
        if step.kind == "reducer":
            cuts.append(_cut(step.name, step.tokens_in, step.tokens_out))
        elif site is not None and site not in reduced:
            cuts.append(_cut(site, step.tokens_out, step.tokens_out))
    return tuple(cuts)


def _cut(site: str, tokens_in: int, tokens_out: int) -> Cut:
    stage, layer = site.split("@")
    return Cut(stage, int(layer), tokens_in, tokens_out)
