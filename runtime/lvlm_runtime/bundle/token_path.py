"""From a manifest and a request to the token counts that the cost model takes."""

from __future__ import annotations

from lvlm_profiles.shapes.dims import Cut, TokenPath
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget, Manifest, Reduction


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
        image_tokens=layout.tokens_in if layout.projected is None else layout.projected.tokens_in,
        packed=layout.packer is not None,
        cuts=_cuts(manifest, budget, layout),
        condensed=projector is not None,
        # The question alone, as near as the prompt's text.
        query_tokens=text_tokens if projector is not None and projector.reads_text else 0,
    )


def _cuts(manifest: Manifest, budget: Budget, layout: LayoutBudget) -> tuple[Cut, ...]:
    """All cuts of the chain; where this budget reduces nothing, as many tokens leave as enter."""
    # No stage stands before the picture itself.
    sites = [cut.site for cut in budget.vision if cut.site.startswith("pixels")]
    sites += [stage.site for stage in manifest.vision if stage.site is not None]
    cuts = _follow(sites, manifest.vision_tokens, budget.vision)
    if layout.projected is not None:
        cuts += _follow([layout.projected.site], layout.projected.tokens_in, (layout.projected,))
    sites = [stage.site for stage in manifest.decoder if stage.site is not None]
    return (*cuts, *_follow(sites, layout.tokens_in, layout.decoder))


def _follow(sites: list[str], tokens: int, reductions: tuple[Reduction, ...]) -> list[Cut]:
    after = {reduction.site: reduction.tokens_out for reduction in reductions}
    cuts = []
    for site in sites:
        stage, layer = site.split("@")
        left = after.get(site, tokens)
        cuts.append(Cut(stage, int(layer), tokens, left))
        tokens = left
    return cuts
