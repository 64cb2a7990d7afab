"""Methods put together and methods placed by hand; each is a ``Method`` like any other.

``visionzip+fastv`` is one method that acts before the decoder and one that acts in it. The first
carries 0.607 of the log-ratio unless a recipe gives another share: iLLaVA's published split
(arXiv:2412.06263, four times 0.85 before the decoder and four times 0.9 in it) is the only one we know
of between a vision encoder and a decoder, and with it a composed method has at every ratio as many
tokens at the decoder's input as ``illava`` and the baselines. Before ``illava`` took its authors'
current form it was 0.664, the split of ``illava_v1``; ``share = 0.664`` in a recipe is that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lvlm_export.reduction import method_entry
from lvlm_export.reduction.method import STAGES, Method, Site
from lvlm_export.reduction.methods.illava import AtPublishedSites
from lvlm_runtime.bundle.placement import AS_PUBLISHED, HandPlacement
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.reduction.method import ReducerShape
    from lvlm_export.reduction.selectors import Selector

# Depths for which a method lists its sites here; the stages of the sites are those of any depth.
NOMINAL = (26, 28, 0.33)
FLAGS = tuple(name for name, kind in Method.__annotations__.items() if "bool" in kind)
SITE_EXAMPLE = "write stage@layer, for example vision@5,vision@6,decoder@8"


def stages_of(method: Method) -> frozenset[str]:
    """The stages a method acts in."""
    return frozenset(site.stage for site in method.sites(*NOMINAL))


def role_in_composed(method: Method) -> str | None:
    """``first`` or ``second`` in a composed method; None for a method that cannot be composed."""
    acts = stages_of(method)
    if not acts or method.withdraws:
        return None
    if acts == {"decoder"}:
        return "second"
    return None if "decoder" in acts else "first"


class Composed(Method):
    """One method before the decoder and one in it.

    Args:
        before: Acts in or after the vision encoder.
        inside: Acts in the decoder.
    """

    vision_share = AtPublishedSites.vision_share

    def __init__(self, before: Method, inside: Method) -> None:
        self.parts = (before, inside)
        self.name = f"{before.name}+{inside.name}"
        self.summary = f"{before.summary}; then {inside.summary}"
        self.paper = f"{before.paper} + {inside.paper}"
        self.cost = f"{before.cost}; {inside.cost}"
        self.acts_in = f"{before.acts_in}, {inside.acts_in}"
        for flag in FLAGS:
            setattr(self, flag, any(getattr(part, flag) for part in self.parts))

    def part_at(self, site: Site) -> Method:
        """The method that acts at a site."""
        return self.parts[site.stage == "decoder"]

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        return tuple(
            site for part in self.parts for site in part.sites(vision_layers, text_layers, ratio)
        )

    def log_shares(self, ratio: float, sites: int) -> tuple[float, ...]:
        return self.parts[1].log_shares(ratio, sites)

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...] | None:
        return self.parts[0].vision_counts(tokens, kept, sites)

    def least_of_tile(self, tokens: int) -> int:
        return self.parts[0].least_of_tile(tokens)

    def merges_at(self, site: Site) -> bool:
        return self.part_at(site).merges_at(site)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        return self.part_at(site).selector(site, shape)


class PlacedMethod(Method):
    """A method at sites, with a share or counts that were given by hand.

    Args:
        method: The method.
        placement: The sites, share or counts.

    Raises:
        UsageError: A name that is no site, or a site where the method does not act.
    """

    def __init__(self, method: Method, placement: HandPlacement) -> None:
        self.inner = method
        self.name, self.summary, self.paper = method.name, method.summary, method.paper
        self.cost, self.acts_in = method.cost, method.acts_in
        self.vision_share = method.vision_share
        for flag in FLAGS:
            setattr(self, flag, getattr(method, flag))
        self.shared_by_hand = placement.vision_share is not None
        if placement.vision_share is not None:
            _check_share(method)
            self.vision_share = placement.vision_share
        self.given = _sites_for(method, placement.sites) if placement.sites else None
        self.counts = {
            budget.ratio: dict(
                zip(_sites_for(method, budget.keep), budget.keep.values(), strict=True)
            )
            for budget in placement.budgets
        }

    def sites(self, vision_layers: int, text_layers: int, ratio: float) -> tuple[Site, ...]:
        by_hand = self.counts.get(ratio)
        given = self.given if by_hand is None else tuple(by_hand)
        if given is None:
            return self.inner.sites(vision_layers, text_layers, ratio)
        for site in given:
            _check_depth(site, vision_layers, text_layers)
        return tuple(sorted(given, key=lambda site: (STAGES.index(site.stage), site.layer)))

    def by_hand(self, ratio: float) -> Mapping[Site, float] | None:
        return self.counts.get(ratio)

    def log_shares(self, ratio: float, sites: int) -> tuple[float, ...]:
        own = self.inner.log_shares(ratio, sites)
        # Published steps hold for the published number of sites; another number has equal steps.
        return own if len(own) == sites else super().log_shares(ratio, sites)

    def vision_counts(self, tokens: int, kept: int, sites: int) -> tuple[int, ...] | None:
        return self.inner.vision_counts(tokens, kept, sites)

    def least_of_tile(self, tokens: int) -> int:
        # A share that a user gave is kept or refused, not moved.
        return 1 if self.shared_by_hand else self.inner.least_of_tile(tokens)

    def merges_at(self, site: Site) -> bool:
        return self.inner.merges_at(site)

    def selector(self, site: Site, shape: ReducerShape) -> Selector:
        return self.inner.selector(site, shape)


def compose(name: str) -> Composed:
    """The method of a name such as ``visionzip+fastv``, in either order.

    Raises:
        UsageError: Parts that are unknown or cannot be combined.
    """
    parts = [method_entry(part.strip()) for part in name.split("+")]
    sides = [role_in_composed(part) for part in parts]
    if None in sides:
        alone = parts[sides.index(None)]
        raise UsageError(f"method {name}: {alone.name} {_why_alone(alone)}; {_what_combines()}")
    if sorted(side or "" for side in sides) != ["first", "second"]:
        where = "in" if sides.count("second") > 1 else "before"
        both = [
            part.name
            for part, side in zip(parts, sides, strict=True)
            if (side == "second") == (where == "in")
        ]
        raise UsageError(
            f"method {name}: {' and '.join(both)} both act {where} the decoder; {_what_combines()}"
        )
    first, second = parts if sides[0] == "first" else reversed(parts)
    return Composed(first, second)


def placed_by_hand(method: Method, placement: HandPlacement) -> Method:
    """The method as a user placed it; itself where nothing was given."""
    return method if placement == AS_PUBLISHED else PlacedMethod(method, placement)


def parse_site(text: str) -> Site:
    """``vision@5`` as a site; UsageError for anything else."""
    stage, at, layer = text.strip().partition("@")
    if not at or not (layer.isascii() and layer.isdigit()):
        raise UsageError(f"{text.strip()!r} is no site; {SITE_EXAMPLE}")
    for known in STAGES:
        if stage == known:
            return Site(known, int(layer))
    raise UsageError(f"{text.strip()!r} is no site: stages are {', '.join(STAGES)}")


def _sites_for(method: Method, names: Sequence[str] | Mapping[str, float]) -> tuple[Site, ...]:
    """Sites by name, checked against the stages that the method acts in; in the order given."""
    if method.withdraws:
        raise UsageError(f"method {method.name} takes its site from the ratio; leave the sites out")
    sites = tuple(parse_site(name) for name in names)
    repeated = [site.name for site in sites if sites.count(site) > 1]
    if repeated:
        raise UsageError(f"site {repeated[0]} is given twice; give it once")
    acts = stages_of(method)
    unsuitable = [site for site in sites if site.stage not in acts]
    if unsuitable:
        at = " and ".join(stage for stage in STAGES if stage in acts)
        raise UsageError(
            f"method {method.name} acts at {at or 'no'} sites, not at {unsuitable[0].name}"
        )
    if isinstance(method, Composed):
        for part in method.parts:
            if not any(method.part_at(site) is part for site in sites):
                raise UsageError(
                    f"none of the sites is for {part.name} of {method.name}; add one or take"
                    f" --method {next(p.name for p in method.parts if p is not part)}"
                )
    return sites


def _check_depth(site: Site, vision_layers: int, text_layers: int) -> None:
    """UsageError for a site that this model does not have."""
    # Before decoder layer 0 there is no layer whose attention could score the tokens.
    first, last = {
        "pixels": (0, 0),
        "vision": (0, vision_layers - 1),
        "features": (vision_layers, vision_layers),
        "projected": (0, 0),
        "decoder": (1, text_layers - 1),
    }[site.stage]
    if not first <= site.layer <= last:
        span = f"{site.stage}@{first}" + (f" to {site.stage}@{last}" if last > first else "")
        raise UsageError(f"site {site.name} is not in this model; it has {span}")


def _check_share(method: Method) -> None:
    acts = stages_of(method)
    if "decoder" not in acts or len(acts) < 2:
        raise UsageError(
            f"method {method.name} acts on one side of the decoder's input, so there is nothing to"
            " share; leave share out"
        )


def _why_alone(method: Method) -> str:
    acts = stages_of(method)
    if not acts:
        return "reduces nothing at a site"
    if method.withdraws:
        return "withdraws every visual token"
    return "acts before and in the decoder already" if "decoder" in acts else "works alone"


def _what_combines() -> str:
    from lvlm_export.reduction import METHODS

    names: dict[str | None, list[str]] = {}
    for name in METHODS:
        names.setdefault(role_in_composed(method_entry(name)), []).append(name)
    return (
        f"a composed method is one of {', '.join(names['first'])} and one of"
        f" {', '.join(names['second'])}"
    )
