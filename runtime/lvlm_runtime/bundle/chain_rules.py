"""Rules for the chain of a manifest: its subgraphs, layers, ratios and token counts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lvlm_runtime.bundle.manifest import (
    CAUSAL,
    GRID,
    PLANE,
    SEEN_FROM,
    SEEN_TO,
    SIZE_BIAS,
    LayoutBudget,
    Manifest,
    Reduction,
    Subgraph,
)
from lvlm_runtime.bundle.route import PIXELS

# An entry, what it should be, and what it is.
Finding = tuple[str, str, str]

# More tokens, pixels or layers than any model has; sums and products of some stay in 64 bits.
MOST = 1 << 24
PROJECTED = "projected@0"
INPUTS = ("pixel_values", "hidden", "sizes", GRID)


def chains_are_whole(manifest: Manifest) -> Iterator[Finding]:
    """No chain is empty, its subgraphs are numbered, and their sites and inputs are known."""
    for chain, stages in (("vision", manifest.vision), ("decoder", manifest.decoder)):
        if not stages:
            yield chain, "at least one subgraph", "none"
        for number, stage in enumerate(stages):
            if stage.name != f"{chain}.{number}":
                yield f"{chain}[{number}].name", f"{chain}.{number}", short(stage.name)
        sites = [stage.site for stage in stages if stage.site is not None]
        kinds = ("vision", "features") if chain == "vision" else ("decoder",)
        for site in sites:
            if not _is_site(site, kinds) or sites.count(site) > 1:
                yield chain, "sites of its own, each once", short(site)
        known = INPUTS if chain == "vision" else (SIZE_BIAS, SEEN_TO, SEEN_FROM)
        for number, stage in enumerate(stages):
            wrong = set(stage.inputs) - set(known) - {n for n in stage.planes if _adds(stage, n)}
            if wrong or len(set(stage.inputs)) < len(stage.inputs):
                wanted = f"of {', '.join(known)}" + (
                    " and planes of its layers" * bool(stage.planes)
                )
                yield f"{chain}[{number}].inputs", wanted, short(stage.inputs)
    for number, stage in enumerate(manifest.decoder):
        if (SIZE_BIAS in stage.inputs) != manifest.sized:
            wanted = f"{short(manifest.decoder[0].inputs)}, as of the first"
            yield f"decoder[{number}].inputs", wanted, short(stage.inputs)
        if (SEEN_TO in stage.inputs) != (manifest.text.attention != CAUSAL):
            wanted = f"{SEEN_TO} where text.attention is not {CAUSAL}, and there alone"
            yield f"decoder[{number}].inputs", wanted, short(stage.inputs)
        if SEEN_FROM in stage.inputs and (not manifest.text.window or SEEN_TO not in stage.inputs):
            wanted = f"{SEEN_FROM} with {SEEN_TO} and a text.window alone"
            yield f"decoder[{number}].inputs", wanted, short(stage.inputs)
    if not manifest.lm_head:
        yield "lm_head", "at least one graph", "none"
    projector = manifest.projector
    if projector is not None and (
        "features" not in projector.inputs or not set(projector.inputs) <= {"features", "query"}
    ):
        yield "projector.inputs", "features, and query or not", short(projector.inputs)


def layers_are_contiguous(manifest: Manifest) -> Iterator[Finding]:
    """Decoder subgraphs hold every layer once, in order; sites stand where they say."""
    at = 0
    for number, stage in enumerate(manifest.decoder):
        if stage.first_layer != at or stage.last_layer < at:
            got = f"{stage.first_layer} to {stage.last_layer}"
            yield f"decoder[{number}]", f"layers from {at} on", got
        at = stage.last_layer
        if stage.site is not None and stage.site != f"decoder@{at}":
            yield f"decoder[{number}].site", f"decoder@{at}", short(stage.site)
    if at != manifest.text.layers or at < 1:
        yield (
            "text.layers",
            f"the {at} layers of the decoder's subgraphs",
            str(manifest.text.layers),
        )
    for number, stage in enumerate(manifest.vision):
        if (stage.first_layer, stage.last_layer) != (0, 0):
            yield f"vision[{number}]", "layers 0 to 0", f"{stage.first_layer} to {stage.last_layer}"


def ratios_are_shares(manifest: Manifest) -> Iterator[Finding]:
    """Ratios are in (0, 1] and stand once; every budget has every layout."""
    ratios = [budget.ratio for budget in manifest.budgets]
    if not ratios:
        yield "budgets", "at least one ratio", "none"
    for index, ratio in enumerate(ratios):
        if not 0 < ratio <= 1:
            yield f"budgets[{index}].ratio", "more than 0 and at most 1", f"{ratio:g}"
        # As ``Bundle.budget`` finds them.
        if any(abs(ratio - other) < 1e-9 for other in ratios[:index]):
            yield f"budgets[{index}].ratio", "ratios that stand once", f"{ratio:g}"
    layouts = [layout.name for layout in manifest.layouts]
    if not layouts or len(set(layouts)) < len(layouts):
        yield "layouts", "at least one, each once", short(layouts)
    for index, budget in enumerate(manifest.budgets):
        found = [part.layout for part in budget.layouts]
        if found != layouts:
            yield f"budgets[{index}].layouts", f"the layouts {short(layouts)}", short(found)
        for part in budget.layouts:
            if not 0 <= part.achieved <= 1:
                yield f"budgets[{index}].achieved", "0 to 1", f"{part.achieved:g}"


def tokens_fall(manifest: Manifest) -> Iterator[Finding]:
    """Along the chain no site takes other tokens than the one before gave, and none gives more."""
    vision = [PIXELS, *(stage.site for stage in manifest.vision)]
    decoder = [stage.site for stage in manifest.decoder]
    for index, budget in enumerate(manifest.budgets):
        entry = f"budgets[{index}]"
        yield from _falling(f"{entry}.vision", budget.vision, vision, manifest.vision_tokens)
        tokens = budget.vision[-1].tokens_out if budget.vision else manifest.vision_tokens
        tokens = tokens if manifest.projector is None else manifest.projector.tokens
        for part in budget.layouts:
            yield from _layout_falls(f"{entry}.layouts.{part.layout}", part, tokens, decoder)


def _layout_falls(
    entry: str, part: LayoutBudget, tokens: int, decoder: list[str | None]
) -> Iterator[Finding]:
    """One layout of a budget; ``tokens`` is what a tile has behind the projector."""
    if not 1 <= part.tokens_full <= MOST or not 1 <= part.tokens_projected <= MOST:
        got = f"{part.tokens_full} and {part.tokens_projected}"
        yield f"{entry}.tokens_full", f"1 to {MOST}", got
    if part.packer is None and part.tokens_projected != tokens:
        yield f"{entry}.tokens_in", f"the {tokens} of a tile", str(part.tokens_projected)
    if part.projected is not None:
        yield from _falling(
            f"{entry}.projected", (part.projected,), [PROJECTED], part.projected.tokens_in
        )
        if part.projected.tokens_out != part.tokens_in:
            wanted = f"the {part.projected.tokens_out} that leave {PROJECTED}"
            yield f"{entry}.tokens_in", wanted, str(part.tokens_in)
    yield from _falling(f"{entry}.decoder", part.decoder, decoder, part.tokens_in)


def _falling(
    entry: str, cuts: tuple[Reduction, ...], sites: list[str | None], tokens: int
) -> Iterator[Finding]:
    """Reductions at some of the sites, in their order, from a number of tokens on."""
    left = list(sites)
    for index, cut in enumerate(cuts):
        if cut.site not in left:
            yield f"{entry}[{index}].site", "a site of the chain, in its order", short(cut.site)
            return
        del left[: left.index(cut.site) + 1]
        if cut.tokens_in != tokens:
            yield f"{entry}[{index}].tokens_in", f"the {tokens} before it", str(cut.tokens_in)
        if not 0 <= cut.tokens_out <= cut.tokens_in:
            yield f"{entry}[{index}].tokens_out", f"0 to {cut.tokens_in}", str(cut.tokens_out)
        tokens = cut.tokens_out


def _adds(stage: Subgraph, plane: str) -> bool:
    """A plane is of one of a decoder subgraph's layers."""
    found = re.fullmatch(re.escape(PLANE) + "([0-9]{1,6})", plane)
    return found is not None and stage.first_layer <= int(found[1]) < stage.last_layer


def _is_site(site: str, kinds: tuple[str, ...]) -> bool:
    found = re.fullmatch(r"([a-z]+)@([0-9]{1,6})", site)
    return found is not None and found[1] in kinds


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
