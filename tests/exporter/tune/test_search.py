"""The search with a model that is made up: what is asked, what goes on, what is chosen and said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import Silent
from lvlm_export.study.evaluation import Question
from lvlm_export.tune.asking import Outcome, PictureQuestions
from lvlm_export.tune.branches import Effort
from lvlm_export.tune.contest import WHOLE, Contest, SearchGoal, search_goal
from lvlm_export.tune.questions import Halves
from lvlm_export.tune.search import Finding, Search
from lvlm_export.tune.space import Trial, TrialPlan
from lvlm_export.tune.state import SearchState
from lvlm_runtime.errors import LvlmError, UsageError

COSTS = {
    "local 0.33": 0.4,
    "tome 0.33": 0.45,
    "fastv 0.33": 0.8,
    "fastv 0.33 decoder@3": 0.9,
    "local+fastv 0.33 share 0.85": 0.39,
    "local 0.2": 0.3,
    "local 0.2 vision@1": 0.2,
    "tome+fastv 0.2 share 0.85": 0.35,
}
SHARES = {"share 0.85": 0.85}
# Of a hundred questions, which it answers right: as many of the first as this says.
RIGHT = {
    WHOLE.name: 96,
    "local 0.33": 90,
    "tome 0.33": 85,
    "fastv 0.33": 80,
    "fastv 0.33 decoder@3": 95,
    "local+fastv 0.33 share 0.85": 92,
    "local 0.2": 70,
    "local 0.2 vision@1": 60,
    "tome+fastv 0.2 share 0.85": 75,
}


def trial_of(name: str) -> Trial:
    method, ratio, *rest = name.split(" ", 2)
    share = SHARES.get(rest[0]) if rest else None
    sites = tuple(rest) if rest and share is None else ()
    return Trial(method, float(ratio), sites, share)


def plan_of(name: str) -> TrialPlan:
    trial = trial_of(name)
    assert trial.name == name
    return TrialPlan(trial, None, None)  # type: ignore[arg-type]


def half(name: str, pictures: int, each: int) -> tuple[PictureQuestions, ...]:
    """Questions whose answer is their number within a hundred, by turns over the pictures."""
    count = pictures * each
    made = [
        Question(f"{name}:{n}", Path(), "?", str(37 * n % count * 100 // count), "k", False)
        for n in range(count)
    ]
    return tuple(
        PictureQuestions(Path(), tuple(made[p * each : (p + 1) * each])) for p in range(pictures)
    )


class MadeUp:
    """A model that answers as ``RIGHT`` says; after some calls it is interrupted."""

    def __init__(self, right: dict[str, int] | None = None, calls: int | None = None) -> None:
        self.right, self.calls = right or RIGHT, calls
        self.asked: list[tuple[str, str]] = []

    def __call__(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        if self.calls is not None:
            if not self.calls:
                raise KeyboardInterrupt
            self.calls -= 1
        questions = [question for each in pictures for question in each.questions]
        self.asked += [(plan.trial.name, question.key) for plan in plans for question in questions]
        return Outcome(
            tuple(
                tuple(int(each.answer) < self._share(plan, each) for each in questions)
                for plan in plans
            ),
            Effort(1.0, float(len(plans))),
        )

    def _share(self, plan: TrialPlan, question: Question) -> int:
        half = question.key.split(":")[0]
        name = plan.trial.name
        return self.right.get(f"{half} {name}", self.right[name])


def contest(within: float | None = None, most_cost: float | None = None, **changes: int) -> Contest:
    halves = Halves(half("search", 100, 2), half("held", 50, 4), "digest")
    goal = SearchGoal(most_cost, within, 0.33)
    plans = tuple(map(plan_of, COSTS))
    made = Contest(plan_of("none 1"), plans, {**COSTS, "none 1": 1.0}, halves, goal, 4, 20)
    return replace(made, **changes)


def search(asked: Contest, path: Path, model: MadeUp, progress: Silent | None = None) -> Finding:
    names = [plan.trial.name for plan in (asked.unreduced, *asked.plans)]
    state = SearchState(path, {"--seed": "0"}, names, asked.halves.borders)
    return Search(asked, state, model, progress or Silent()).run()


def test_the_chosen_is_no_dearer_than_the_best_single_method(tmp_path: Path) -> None:
    """``fastv`` moved answers best of all, and costs more than ``local`` as published."""
    found = search(contest(), tmp_path / "state.json", MadeUp())
    assert found.single is not None
    assert found.single.trial.name == "local 0.33"
    assert found.chosen.trial.name == "local+fastv 0.33 share 0.85"
    assert found.refuted is None
    change = found.against_single
    assert change is not None
    assert (change.questions, change.lost, change.won) == (200, 0, 4)
    assert change.low < change.change == 0.02 < change.high
    assert change.p == pytest.approx(2 / 2**4)
    assert found.next_best is not None
    assert found.next_best.trial.name == "local 0.33"
    assert found.against_next == change


def test_what_the_held_out_half_refutes_is_not_chosen(tmp_path: Path) -> None:
    right = {**RIGHT, "held local+fastv 0.33 share 0.85": 87}
    found = search(contest(), tmp_path / "state.json", MadeUp(right))
    assert found.refuted is not None
    assert found.refuted.trial.name == "local+fastv 0.33 share 0.85"
    assert found.chosen == found.single
    assert found.against_single is not None
    assert (found.against_single.lost, found.against_single.won) == (6, 0)
    assert found.next_best is not None
    assert found.next_best.trial.name not in (found.chosen.trial.name, found.refuted.trial.name)


@pytest.mark.parametrize(
    ("within", "most_cost", "name"),
    [
        (None, 1.0, "fastv 0.33 decoder@3"),
        (0.05, None, "local+fastv 0.33 share 0.85"),
        (0.012, None, "fastv 0.33 decoder@3"),
        (0.30, 0.4, "local 0.2"),
    ],
)
def test_a_goal_of_ones_own(
    within: float | None, most_cost: float | None, name: str, tmp_path: Path
) -> None:
    found = search(contest(within, most_cost, finalists=8), tmp_path / "state.json", MadeUp())
    assert found.chosen.trial.name == name


@pytest.mark.parametrize(
    ("right", "said"),
    [
        # Somebody is near enough to stay in the search, and nobody to be chosen.
        (RIGHT, r"the nearest is fastv 0\.33 decoder@3, which loses 1\.0 points on 200 questions"),
        # All have surely lost more after the first step.
        (
            {name: 96 if name == WHOLE.name else 10 for name in RIGHT},
            r"the nearest is .*, which loses 8\d\.\d points on 20 questions",
        ),
    ],
)
def test_nobody_meets_the_goal(right: dict[str, int], said: str, tmp_path: Path) -> None:
    asked = contest(within=0.005, finalists=2)
    if right is not RIGHT:
        asked = replace(asked, plans=tuple(p for p in asked.plans if not p.trial.single))
    with pytest.raises(LvlmError, match=said):
        search(asked, tmp_path / "state.json", MadeUp(right))


def test_a_search_goes_on_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """Wherever it is interrupted, nothing is asked twice and the same is found."""
    whole = MadeUp()
    expected = search(contest(), tmp_path / "whole.json", whole)
    calls, interrupted = 0, 0
    while True:
        path = tmp_path / f"{calls}.json"
        first, second = MadeUp(calls=calls), MadeUp()
        try:
            search(contest(), path, first)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        assert search(contest(), path, second) == expected
        assert first.asked + second.asked == whole.asked
        assert without_time(path) == without_time(tmp_path / "whole.json")
        calls += 1
    assert interrupted > len(contest().rungs) + 1


def without_time(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line for line in lines if "processor_seconds" not in line]


def test_progress_says_steps_and_questions(tmp_path: Path) -> None:
    progress = Silent()
    search(contest(), tmp_path / "state.json", MadeUp(), progress)
    titles = list(dict.fromkeys(title for title, _ in progress.steps))
    assert titles == ["step 1: 8 trials", "step 2: 4 trials", "held out: 4 trials"]
    asked = [int(step.split()[0]) for title, step in progress.steps if title == titles[-1]]
    assert sum(asked) == 200


def test_steps_end_with_whole_pictures() -> None:
    odd = replace(contest(), first=21, halves=Halves(half("search", 40, 5), half("held", 2, 2), ""))
    assert all(rung.questions % 5 == 0 for rung in odd.rungs)
    assert odd.rungs[-1].questions == 200


@pytest.mark.parametrize(
    ("ratios", "found"), [((0.5, 0.33, 0.2), 0.33), ((0.5, 0.25), 0.25), ((0.5,), 0.5)]
)
def test_what_a_search_compares_with(ratios: tuple[float, ...], found: float) -> None:
    goal = search_goal(None, None, None, ratios)
    assert goal.against == found
    assert goal.beats_single
    assert not search_goal(None, 0.01, None, ratios).beats_single
    assert not search_goal(3.0, None, 0.5, (0.5,)).beats_single


def test_the_ratio_to_compare_at_is_one_that_is_tried() -> None:
    said = r"--against 0\.4 is not among the ratios tried, 0\.5, 0\.33; name one of them"
    with pytest.raises(UsageError, match=said):
        search_goal(None, None, 0.4, (0.33, 0.5))


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.pop("held"), "expected exactly the known entries, got no 'held'"),
        (lambda record: record.update(done="x"), "done: expected a number, got 'x'"),
        (
            lambda record: record.update(alone=-1.0),
            r"alone: expected a number of 0 or more, got -1",
        ),
        (
            lambda record: record["search"].update({"tome 0.33": "012"}),
            r"search\.tome 0\.33: expected zeros and ones, one for each question",
        ),
        (
            lambda record: record["search"].update({"tome 0.33": "101"}),
            r"search\.tome 0\.33: expected zeros and ones, one for each question",
        ),
        (
            lambda record: record["held"].update({"tome 0.33": "1" * 204}),
            r"held\.tome 0\.33: expected zeros and ones, one for each question",
        ),
        (
            lambda record: record["search"].update({"tome 0.4": "1"}),
            r"search: expected names of trials, got 'tome 0\.4'",
        ),
        (
            lambda record: record["run"].update({"--seed": "7"}),
            "is of a search with another --seed: 7 there and 0 here",
        ),
    ],
)
def test_a_damaged_state_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    path, asked = tmp_path / "state.json", contest()
    search(asked, path, MadeUp())
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(LvlmError, match=said + ".*; .*delete it to begin again"):
        search(asked, path, MadeUp())


def test_half_a_state_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"run": {')
    with pytest.raises(LvlmError, match=r"state\.json is damaged: it is no JSON .*; delete it"):
        search(contest(), path, MadeUp())
