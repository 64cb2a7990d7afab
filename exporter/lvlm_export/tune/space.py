"""The trials of a search: a stated, finite space without anything drawn by chance.

For every ratio there is every method that fits the model: at its own sites; with all its sites moved
together by an eighth of the depth of the tower or of the decoder, up and down; and, where it acts on
both sides of the decoder's input, with other splits of the log-ratio between them. A method before
the decoder and one in it are a method too (``tome+fastv``), at every split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lvlm_export.plan.fit import check_fit, check_rank
from lvlm_export.reduction import METHODS, load_method, method_entry
from lvlm_export.reduction.budget import BudgetPlan, Geometry
from lvlm_export.reduction.compose import compose, role_in_composed
from lvlm_export.reduction.method import Method, Site
from lvlm_export.reduction.schedule import plan_budget
from lvlm_runtime.bundle.placement import HandPlacement
from lvlm_runtime.errors import UsageError

UNREDUCED = "none"
# Parts of the depth that all sites of a method move by.
SHIFTS = (-1 / 8, 1 / 8)
# Shares of the log-ratio before the decoder that are tried beside a method's own.
SPLITS = (1 / 3, 0.85)


@dataclass(frozen=True)
class Trial:
    """One way to reduce.

    Attributes:
        method: Its name, or two with a plus between.
        ratio: Share of visual tokens kept.
        sites: Names of the sites; empty for the method's own.
        share: Share of the log-ratio before the decoder; None for the method's own.
    """

    method: str
    ratio: float
    sites: tuple[str, ...] = ()
    share: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables and files.

        Example:
            >>> Trial("tome+fastv", 0.33, share=0.85).name
            'tome+fastv 0.33 share 0.85'
        """
        words = [self.method, f"{self.ratio:g}"]
        words += [",".join(self.sites)] if self.sites else []
        words += [f"share {self.share:.3g}"] if self.share is not None else []
        return " ".join(words)

    @property
    def single(self) -> bool:
        """One method as its authors published it."""
        return "+" not in self.method and not self.sites and self.share is None

    @property
    def placement(self) -> HandPlacement:
        """What is not the method's own, as ``build`` takes it."""
        return HandPlacement(self.sites, self.share)

    def load(self) -> Method:
        """The method at its sites."""
        return load_method(self.method, self.placement)


@dataclass(frozen=True)
class TrialPlan:
    """A trial as integers.

    Attributes:
        trial: Which.
        method: The method at its sites.
        budget: Tokens everywhere.
    """

    trial: Trial
    method: Method
    budget: BudgetPlan


@dataclass(frozen=True)
class ModelFit:
    """What decides whether a trial fits a model.

    Attributes:
        geometry: How its tokens are counted.
        prefix: Leading tokens of the tower that are no patches.
        packed: Its projected tiles go through a packer.
        width: Of the language model.
    """

    geometry: Geometry
    prefix: int
    packed: bool
    width: int

    def plan(self, trial: Trial) -> TrialPlan:
        """Count a trial's tokens; UsageError where the model cannot have it."""
        method = trial.load()
        if trial.ratio < 1:
            check_fit(method, self.geometry, self.prefix, self.packed)
        budget = plan_budget(trial.ratio, method, self.geometry)
        check_rank(method, budget, self.width)
        return TrialPlan(trial, method, budget)


@dataclass(frozen=True)
class Space:
    """All trials of a search.

    Attributes:
        plans: In the order in which they are made.
        refused: Name and reason of what the model cannot have.
    """

    plans: tuple[TrialPlan, ...]
    refused: tuple[tuple[str, str], ...]


def default_methods() -> tuple[str, ...]:
    """Every method, and every pair of one before the decoder and one in it."""
    single = [name for name in METHODS if name != UNREDUCED]
    roles = {name: role_in_composed(method_entry(name)) for name in single}
    pairs = [
        compose(f"{first}+{second}").name
        for first in single
        if roles[first] == "first"
        for second in single
        if roles[second] == "second"
    ]
    return (*single, *pairs)


def make_space(fit: ModelFit, methods: Sequence[str], ratios: Sequence[float]) -> Space:
    """Every trial of methods and ratios that a model can have; equal ones once.

    Args:
        fit: The model.
        methods: Names.
        ratios: Shares of visual tokens kept, below 1.
    """
    plans: dict[tuple[str, BudgetPlan], TrialPlan] = {}
    refused = []
    for ratio in sorted(ratios, reverse=True):
        for method in methods:
            for trial in trials_of(method, ratio, fit.geometry):
                try:
                    plan = fit.plan(trial)
                    # A selector may refuse counts that the schedule does not know about.
                    check_selectors(plan, fit)
                except UsageError as error:
                    refused.append((trial.name, str(error).split(";")[0]))
                    continue
                plans.setdefault((method, plan.budget), plan)
    return Space(tuple(plans.values()), tuple(refused))


def trials_of(name: str, ratio: float, geometry: Geometry) -> Iterable[Trial]:
    """A method at a ratio: as published, moved, and split otherwise."""
    whole = Trial(name, ratio)
    yield whole
    method = load_method(name)
    try:
        sites = method.sites(geometry.vision_layers, geometry.text_layers, ratio)
    except UsageError:
        return  # making the first one says why
    both = {site.per_tile for site in sites} == {True, False}
    if both and {site.stage for site in sites} & {"decoder"}:
        yield from (replace(whole, share=share) for share in SPLITS)
    if "+" not in name and not method.withdraws:
        for part in SHIFTS:
            moved = shifted(sites, part, geometry)
            if moved is not None:
                yield replace(whole, sites=moved)


def shifted(sites: Sequence[Site], part: float, geometry: Geometry) -> tuple[str, ...] | None:
    """Sites moved by a part of their depth; None where none can move or one would leave its part.

    Example:
        >>> from lvlm_export.reduction.budget import Geometry
        >>> geometry = Geometry(24, 576, 32, (), False, lambda _layout, kept: kept)
        >>> shifted((Site("vision", 5), Site("decoder", 8)), 1 / 8, geometry)
        ('vision@8', 'decoder@12')
    """
    depths = {"vision": geometry.vision_layers, "decoder": geometry.text_layers}
    # Before decoder layer 0 there is no layer whose attention could score the tokens.
    first = {"vision": 0, "decoder": 1}
    moved = []
    for site in sites:
        if site.stage not in depths:
            moved.append(site)
            continue
        step = math.copysign(max(1, round(abs(part) * depths[site.stage])), part)
        layer = site.layer + int(step)
        if not first[site.stage] <= layer < depths[site.stage]:
            return None
        moved.append(Site(site.stage, layer))
    return tuple(site.name for site in moved) if moved != list(sites) else None


def check_selectors(plan: TrialPlan, fit: ModelFit) -> None:
    """Make every selector once; UsageError where one cannot do its counts."""
    from lvlm_export.reduction.method import ReducerShape

    for count in (*plan.budget.vision, *(c for each in plan.budget.layouts for c in each.counts)):
        before = count.site.stage in ("vision", "features")
        prefix, whole = (fit.prefix, fit.geometry.vision_tokens) if before else (0, 0)
        grid = fit.geometry.grid if before else None
        columns = 0 if grid is None else grid[1]
        shape = ReducerShape(
            count.tokens_in, count.tokens_out, prefix, 1.0, 0, whole, columns=columns
        )
        plan.method.selector(count.site, shape)


def recipe_text(trial: Trial, flags: Mapping[str, str | int], comment: str) -> str:
    """A trial as a recipe of ``build``, TOML.

    Args:
        trial: Which.
        flags: Other flags of ``build`` that it was searched with, by name.
        comment: One line on where it comes from.

    Example:
        >>> print(recipe_text(Trial("tome", 0.5), {"seed": 0, "target": "rtx"}, "found"), end="")
        # found
        method = "tome"
        ratios = [0.5]
        seed = 0
        target = "rtx"
    """
    lines = [f"# {comment}", f'method = "{trial.method}"', f"ratios = [{trial.ratio!r}]"]
    if trial.sites:
        lines.append(f"sites = [{', '.join(f'{chr(34)}{site}{chr(34)}' for site in trial.sites)}]")
    if trial.share is not None:
        lines.append(f"share = {trial.share!r}")
    # What JSON writes of a word or a number, TOML reads.
    lines += [f"{name} = {json.dumps(value)}" for name, value in flags.items()]
    return "\n".join(lines) + "\n"
