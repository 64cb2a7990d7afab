"""What several trials share on their way through a model, and what that saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lvlm_export.families import ModelShape
from lvlm_export.graphs.reducers import Reducer, reducer_of
from lvlm_export.reduction.budget import SiteCount
from lvlm_export.reduction.compose import Composed, PlacedMethod
from lvlm_export.reduction.method import Method, Site
from lvlm_export.tune.space import TrialPlan

Group = tuple[int, ...]
"""Numbers of trials, ascending."""


@dataclass(frozen=True)
class Act:
    """What a trial does at a site; trials with equal acts so far have equal hidden states.

    Attributes:
        part: Name of the method that acts.
        count: Tokens before and after.
        tracks_size: Attention of the tower counts the sizes of tokens from here on.
        sizes_in_decoder: The decoder's does, too.
    """

    part: str
    count: SiteCount
    tracks_size: bool
    sizes_in_decoder: bool


@dataclass
class Effort:
    """What answers took.

    Attributes:
        done: Floating-point operations of the layers, of all trials together, as they were run.
        alone: Those of every trial asked every question by itself.
        seconds: Time of the processor, over all processes that answered.
    """

    done: float = 0.0
    alone: float = 0.0
    seconds: float = 0.0

    def add(self, other: Effort) -> None:
        """Count another's operations too."""
        self.done += other.done
        self.alone += other.alone
        self.seconds += other.seconds


class Branching:
    """The acts of trials on one tile layout, and their reducers, each made once.

    Args:
        plans: The trials; they are called by their number here.
        shape: The model.
        layout: Name of the tile layout.
        seed: For methods that draw numbers.
    """

    def __init__(
        self, plans: Sequence[TrialPlan], shape: ModelShape, layout: str, seed: int
    ) -> None:
        self.plans, self.shape, self.seed = plans, shape, seed
        self.group: Group = tuple(range(len(plans)))
        self._acts = [self._acts_of(plan, layout) for plan in plans]
        self._reducers: dict[Act, Reducer] = {}

    def split(self, group: Group, site: Site) -> Mapping[Act | None, Group]:
        """A group's trials by what they do at a site; None for those that do nothing there."""
        found: dict[Act | None, list[int]] = {}
        for number in group:
            found.setdefault(self._acts[number].get(site), []).append(number)
        return {act: tuple(numbers) for act, numbers in found.items()}

    def any_acts(self, group: Iterable[int], site: Site) -> bool:
        """Whether a trial of a group does something at a site."""
        return any(site in self._acts[number] for number in group)

    def reducer(self, act: Act, group: Group) -> Reducer:
        """The module of an act that a group has in common."""
        if act not in self._reducers:
            method = self.plans[group[0]].method
            self._reducers[act] = reducer_of(method, self.shape, self.seed, act.count)
        return self._reducers[act]

    def _acts_of(self, plan: TrialPlan, layout: str) -> dict[Site, Act]:
        part = next(each for each in plan.budget.layouts if each.layout == layout)
        method = plan.method
        flags = method.tracks_size, method.sizes_in_decoder
        return {
            count.site: Act(acting(method, count.site).name, count, *flags)
            for count in (*plan.budget.vision, *part.counts)
        }


def acting(method: Method, site: Site) -> Method:
    """The method that acts at a site of one that may be composed or placed by hand."""
    if isinstance(method, PlacedMethod):
        return acting(method.inner, site)
    return acting(method.part_at(site), site) if isinstance(method, Composed) else method
