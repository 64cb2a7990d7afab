"""The search itself: halving on one half of the questions, judgement on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lvlm_export.study.evaluation import wilson_interval
from lvlm_export.tune.asking import Outcome, PictureQuestions
from lvlm_export.tune.contest import WHOLE, Contest
from lvlm_export.tune.halving import Standing, choose, survivors
from lvlm_export.tune.space import TrialPlan
from lvlm_export.tune.state import SearchState
from lvlm_profiles.report.tuning import HeldOut, TunedTrial, TuningStep
from lvlm_profiles.statistics import PairedChange, paired_change
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.progress import Progress

# Pictures that are asked about between two writings of the state.
PICTURES = 16

AskTrials = Callable[[Sequence[TrialPlan], Sequence[PictureQuestions]], Outcome]
"""Which trials answer which questions right."""


@dataclass(frozen=True)
class Finding:
    """What a search found.

    Attributes:
        steps: Trials that each step really asked.
        unreduced: The model without reduction.
        trials: All that were asked anything.
        chosen: The one to build.
        refuted: The best of the search half, where it is not the chosen one since the held-out half
            says that it is less accurate than the best single method; else None.
        single: The best single method at the goal's ratio, or None.
        against_single: From it to the chosen or refuted one on the held-out half, or None.
        next_best: The next best trial of the search half that meets the goal, or None.
        against_next: From it to the chosen one on the held-out half, or None.
    """

    steps: tuple[TuningStep, ...]
    unreduced: TunedTrial
    trials: tuple[TunedTrial, ...]
    chosen: TrialPlan
    refuted: TrialPlan | None
    single: TrialPlan | None
    against_single: PairedChange | None
    next_best: TrialPlan | None
    against_next: PairedChange | None


class Search:
    """A search that can be interrupted at any moment.

    Args:
        contest: What it starts from.
        state: What it knows already.
        ask: Answers questions.
        progress: Told about every step.
    """

    def __init__(
        self, contest: Contest, state: SearchState, ask: AskTrials, progress: Progress
    ) -> None:
        self.contest, self.state, self.ask, self.progress = contest, state, ask, progress

    def run(self) -> Finding:
        """Search, choose and judge.

        Raises:
            LvlmError: No trial meets the goal; names the nearest.
        """
        steps, alive = self._halve()
        halves = self.contest.halves
        standings = self._standings(alive.values(), halves.counts[0])
        single = self._best_single(standings, alive)
        best = alive[self._choose(standings, single).name]
        self._ask(
            "held", alive.values(), halves.held, halves.counts[1], f"held out: {len(alive)} trials"
        )
        against = None if single is None else self._change(single, best)
        chosen, refuted = best, None
        if against is not None and against.change < 0 and self.contest.goal.beats_single:
            assert single is not None
            chosen, refuted = single, best
        others = [
            each for each in standings if each.name not in (chosen.trial.name, best.trial.name)
        ]
        after = self._fitting(others, single)
        next_best = None if after is None else alive[after.name]
        asked = [p for p in self.contest.plans if p.trial.name in self.state.record.search]
        return Finding(
            tuple(steps),
            self._tuned(self.contest.unreduced),
            tuple(self._tuned(plan) for plan in asked),
            chosen,
            refuted,
            single,
            against,
            next_best,
            None if next_best is None else self._change(next_best, chosen),
        )

    def _halve(self) -> tuple[list[TuningStep], dict[str, TrialPlan]]:
        """All steps; what is left of the trials, by name."""
        contest, steps = self.contest, list[TuningStep]()
        alive = {plan.trial.name: plan for plan in contest.plans}
        for number, rung in enumerate(contest.rungs):
            if number:
                asked = steps[-1].questions
                standings = self._standings(alive.values(), asked)
                single = self._best_single(standings, alive)
                names = survivors(
                    standings,
                    rung.trials,
                    self._unreduced(asked),
                    contest.goal.within,
                    self._limit(single),
                )
                if not names:
                    raise LvlmError(self._why_none(standings))
                alive = {name: alive[name] for name in names}
            steps.append(TuningStep(rung.questions, len(alive)))
            title = f"step {number + 1}: {len(alive)} trials"
            self._ask("search", alive.values(), contest.halves.search, rung.questions, title)
        return steps, alive

    def _choose(self, standings: Sequence[Standing], single: TrialPlan | None) -> Standing:
        found = self._fitting(standings, single)
        if found is None:
            raise LvlmError(self._why_none(standings))
        return found

    def _fitting(self, standings: Sequence[Standing], single: TrialPlan | None) -> Standing | None:
        """The best of some trials by the search half; None where none meets the goal."""
        unreduced = self._unreduced(self.contest.halves.counts[0])
        goal = self.contest.goal
        limit = self._limit(single)
        return choose(standings, unreduced, limit, goal.within, thrifty=goal.beats_single)

    def _limit(self, single: TrialPlan | None) -> float | None:
        """What the first token may cost: as the goal says, or else what the best single one costs."""
        goal = self.contest.goal
        if goal.beats_single and single is not None:
            return self.contest.costs[single.trial.name]
        return goal.most_cost

    def _change(self, before: TrialPlan, after: TrialPlan) -> PairedChange:
        """From one trial to another on the held-out half."""
        right = [self.state.right("held", each.trial.name) for each in (before, after)]
        return paired_change(*right)

    def _unreduced(self, questions: int) -> tuple[bool, ...]:
        return self.state.right("search", WHOLE.name)[:questions]

    def _standings(self, plans: Iterable[TrialPlan], questions: int) -> list[Standing]:
        """All trials as they stand; the best single method at the goal's ratio stays to the end.

        ``questions``: those that this step had asked; a search that goes on may know of more.
        """
        made = [
            Standing(
                plan.trial.name,
                self.contest.costs[plan.trial.name],
                self.state.right("search", plan.trial.name)[:questions],
            )
            for plan in plans
        ]
        by_name = {plan.trial.name: plan for plan in plans}
        single = self._best_single(made, by_name)
        return [
            replace(each, kept=single is not None and each.name == single.trial.name)
            for each in made
        ]

    def _best_single(
        self, standings: Sequence[Standing], plans: dict[str, TrialPlan]
    ) -> TrialPlan | None:
        """The most accurate single method at the goal's ratio; of equals the cheapest."""
        ratio = self.contest.goal.against
        found = [
            each
            for each in standings
            if plans[each.name].trial.single and plans[each.name].trial.ratio == ratio
        ]
        best = min(found, key=lambda each: (-each.accuracy, each.cost), default=None)
        return None if best is None else plans[best.name]

    def _ask(
        self,
        half: str,
        plans: Iterable[TrialPlan],
        pictures: Sequence[PictureQuestions],
        questions: int,
        title: str,
    ) -> None:
        """Ask trials, and the unreduced model, as far as they were not asked before."""
        everyone = [self.contest.unreduced, *plans]
        parts: list[tuple[list[TrialPlan], list[PictureQuestions]]] = []
        reached = 0
        for each in pictures:
            if reached >= questions:
                break
            behind = [p for p in everyone if len(self.state.right(half, p.trial.name)) <= reached]
            reached += len(each.questions)
            if not behind:
                continue
            if parts and parts[-1][0] == behind and len(parts[-1][1]) < PICTURES:
                parts[-1][1].append(each)
            else:
                parts.append((behind, [each]))
        if not parts:
            return
        with self.progress.stage(title, len(parts)) as advance:
            for behind, some in parts:
                outcome = self.ask(behind, some)
                record = self.state.record
                record.processor_seconds += outcome.effort.seconds
                record.done += outcome.effort.done
                record.alone += outcome.effort.alone
                names = [plan.trial.name for plan in behind]
                self.state.extend(half, dict(zip(names, outcome.right, strict=True)))
                advance(f"{sum(len(each.questions) for each in some)} questions")

    def _tuned(self, plan: TrialPlan) -> TunedTrial:
        trial = plan.trial
        right = self.state.right("search", trial.name)
        held, whole = (self.state.right("held", name) for name in (trial.name, WHOLE.name))
        judged = None
        if held:
            interval = wilson_interval(sum(held), len(held))
            judged = HeldOut(sum(held) / len(held), *interval, paired_change(whole, held))
        return TunedTrial(
            trial.name,
            trial.method,
            trial.ratio,
            trial.sites,
            trial.share,
            self.contest.costs[trial.name],
            len(right),
            sum(right),
            judged,
        )

    def _why_none(self, standings: Sequence[Standing]) -> str:
        nearest = max(standings, key=lambda each: (each.accuracy, -each.cost))
        unreduced = self._unreduced(len(nearest.right))
        lost = -100 * paired_change(unreduced, nearest.right).change
        return (
            f"no trial meets the goal; the nearest is {nearest.name}, which loses {lost:.1f} points"
            f" on {len(nearest.right)} questions; allow more with --within, or give a larger --ratio"
            " or a longer --ttft"
        )
