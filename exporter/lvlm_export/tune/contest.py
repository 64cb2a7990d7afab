"""What a search starts from: the goal, the trials that it allows, their costs, the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lvlm_export.reduction import load_method
from lvlm_export.tune.costs import CostBasis, first_token_costs
from lvlm_export.tune.halving import Rung, make_rungs
from lvlm_export.tune.questions import Halves
from lvlm_export.tune.space import (
    UNREDUCED,
    ModelFit,
    Space,
    Trial,
    TrialPlan,
    default_methods,
    make_space,
)
from lvlm_runtime.errors import UsageError

WHOLE = Trial(UNREDUCED, 1.0)
# Kept of the visual tokens where the best single method is taken to compare with; the ratio that the
# tables of the methods are about.
COMPARED = 0.33


@dataclass(frozen=True)
class SearchGoal:
    """What is looked for.

    Attributes:
        most_cost: What the first token may cost, or None.
        within: Accuracy that may be lost, or None.
        against: Ratio of the best single method that the chosen one is compared with.
    """

    most_cost: float | None
    within: float | None
    against: float

    @property
    def beats_single(self) -> bool:
        """Nothing was asked for: it is to be no dearer and no less accurate than the best single one."""
        return self.most_cost is None and self.within is None


@dataclass(frozen=True)
class Contest:
    """Everything that a search starts from.

    Attributes:
        unreduced: The model without reduction.
        plans: The trials, all within the cost that the goal allows.
        costs: By name.
        halves: The questions.
        goal: What is looked for.
        finalists: Trials of the last step, at most.
        first: Questions of the first step.
    """

    unreduced: TrialPlan
    plans: tuple[TrialPlan, ...]
    costs: dict[str, float]
    halves: Halves
    goal: SearchGoal
    finalists: int
    first: int

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Its steps; questions are whole pictures."""
        borders, _ = self.halves.borders
        made = make_rungs(len(self.plans), self.finalists, self.first, borders[-1])
        return tuple(
            replace(rung, questions=next(end for end in borders if end >= rung.questions))
            for rung in made
        )


def search_goal(
    most_cost: float | None, within: float | None, against: float | None, ratios: Sequence[float]
) -> SearchGoal:
    """The goal that options ask for.

    Args:
        most_cost: What the first token may cost, or None.
        within: Accuracy that may be lost, or None.
        against: Ratio to compare at; None for the one that is nearest to 0.33.
        ratios: That are tried.

    Raises:
        UsageError: The ratio to compare at is not tried.
    """
    if against is None:
        against = min(ratios, key=lambda ratio: (abs(ratio - COMPARED), ratio))
    if against not in ratios:
        tried = ", ".join(f"{ratio:g}" for ratio in sorted(ratios, reverse=True))
        raise UsageError(
            f"--against {against:g} is not among the ratios tried, {tried}; name one of them"
        )
    return SearchGoal(most_cost, within, against)


def find_space(basis: CostBasis, methods: Sequence[str], ratios: Sequence[float]) -> Space:
    """All trials of a model.

    Args:
        basis: The model.
        methods: Names, of one method or of two with a plus between; empty for all and all pairs.
        ratios: Shares of visual tokens kept, below 1.

    Raises:
        UsageError: There is no trial.
    """
    names = dict.fromkeys(load_method(name).name for name in methods)
    if UNREDUCED in names:
        raise UsageError("method none is the unreduced model, which is always asked; leave it out")
    space = make_space(fit_of(basis), tuple(names) or default_methods(), ratios)
    if not space.plans:
        name, reason = space.refused[0]
        raise UsageError(f"no trial fits this model; the first, {name}: {reason}")
    return space


def fit_of(basis: CostBasis) -> ModelFit:
    """What decides whether a trial fits a basis' model."""
    subject = basis.subject
    return ModelFit(
        subject.geometry, subject.dims.vision.prefix, subject.packed, subject.dims.text.width
    )


def make_contest(
    basis: CostBasis,
    space: Space,
    halves: Halves,
    goal: SearchGoal,
    finalists: int,
    first: int,
) -> Contest:
    """The trials that the goal's time allows, with their costs.

    Args:
        basis: The model and where it is to run.
        space: All trials.
        halves: The questions.
        goal: What is looked for.
        finalists: Trials of the last step, at most.
        first: Questions of the first step.

    Raises:
        UsageError: There is no trial left, or the device has no rates.
    """
    unreduced = fit_of(basis).plan(WHOLE)
    costs = first_token_costs(basis, unreduced, space.plans)
    most = goal.most_cost
    plans = tuple(p for p in space.plans if most is None or costs[p.trial.name] <= most)
    if not plans:
        least = min(space.plans, key=lambda plan: costs[plan.trial.name]).trial.name
        raise UsageError(
            f"none of {len(space.plans)} trials is estimated at {most:g} ms or less; the quickest is"
            f" {least} with {costs[least]:.3g} ms; give a longer --ttft, a smaller --ratio or another"
            " --device"
        )
    return Contest(unreduced, plans, costs, halves, goal, finalists, first)
