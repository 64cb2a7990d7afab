"""Which task gets which trials and pictures; a Ray that is made up runs them here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvlm_export.study.evaluation import Question
from lvlm_export.tune import on_ray
from lvlm_export.tune.asking import AskOptions, Outcome, PictureQuestions
from lvlm_export.tune.branches import Effort
from lvlm_export.tune.space import Trial, TrialPlan


def right(trial: Trial, question: Question) -> bool:
    return hash((trial.ratio, question.key)) % 3 == 0


@pytest.mark.parametrize(
    ("trials", "pictures", "workers", "tasks"),
    [
        (40, 5, 4, [(10, 5)] * 4),
        (17, 5, 4, [(9, 3), (9, 2), (8, 3), (8, 2)]),
        (3, 5, 4, [(3, 2), (3, 1), (3, 1), (3, 1)]),
        (3, 2, 64, [(3, 1), (3, 1)]),
        (40, 5, 0, [(40, 5)]),
    ],
)
def test_the_parts_are_put_together_again(
    trials: int,
    pictures: int,
    workers: int,
    tasks: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def share(
        directory: Path,
        options: AskOptions,
        trials: Sequence[Trial],
        pictures: Sequence[PictureQuestions],
    ) -> Outcome:
        assert directory.is_absolute()
        seen.append((len(trials), len(pictures)))
        questions = [question for each in pictures for question in each.questions]
        rows = tuple(tuple(right(trial, each) for each in questions) for trial in trials)
        return Outcome(rows, Effort(1.0, 2.0, 0.5))

    def remote(**options: Any) -> Callable[[Any], Any]:
        assert options == {"num_cpus": 1}
        return lambda function: SimpleNamespace(remote=function)

    ray = SimpleNamespace(
        is_initialized=lambda: True,
        remote=remote,
        put=lambda value: value,
        get=lambda value: value,
        cluster_resources=lambda: {"CPU": float(workers)},
        exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(on_ray, "ask_share", share)
    plans = [TrialPlan(Trial("tome", 1 / (n + 2)), None, None) for n in range(trials)]  # type: ignore[arg-type]
    shown = [
        PictureQuestions(
            Path(), tuple(Question(f"{p}:{q}", Path(), "", "", "", False) for q in range(p + 1))
        )
        for p in range(pictures)
    ]
    outcome = on_ray.RayAsker(Path(), AskOptions(4, None, 0)).ask(plans, shown)
    assert seen == tasks
    questions = [question for each in shown for question in each.questions]
    expected = tuple(tuple(right(plan.trial, each) for each in questions) for plan in plans)
    assert outcome.right == expected
    assert (outcome.effort.done, outcome.effort.seconds) == (len(tasks), len(tasks) / 2)
