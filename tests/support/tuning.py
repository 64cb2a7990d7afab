"""A search's result that is made up: three finalists, one trial that left before, the whole model."""

from __future__ import annotations

from dataclasses import replace

from lvlm_profiles.report.tuning import HeldOut, TunedTrial, TuningResult, TuningStep
from lvlm_profiles.statistics import paired_change

WHOLE = tuple(number < 95 for number in range(100))


def answers(right: int) -> tuple[bool, ...]:
    return tuple(number < right for number in range(100))


def trial(
    method: str, cost: float, right: int, held: int | None, share: float | None = None
) -> TunedTrial:
    ratio = 1.0 if method == "none" else 0.33
    name = f"{method} {ratio:g}" + ("" if share is None else f" share {share:g}")
    made = TunedTrial(name, method, ratio, (), share, cost, 100, right)
    if held is None:
        return replace(made, asked=40)
    half = held / 100
    judged = HeldOut(half, half - 0.05, half + 0.04, paired_change(WHOLE, answers(held)))
    return replace(made, held_out=judged)


SINGLE = trial("local", 0.4, 93, 92)
PAIR = trial("local+fastv", 0.38, 94, 93, share=0.85)
DEAR = trial("fastv", 0.8, 94, 94)
LEFT = trial("random", 0.45, 30, None)
RESULT = TuningResult(
    model="model/<b>",
    unit="of the unreduced FLOPs",
    basis="share of the unreduced first token's FLOPs, 13 text tokens",
    most_cost=None,
    within=None,
    seed=0,
    search_questions=100,
    held_questions=100,
    against=0.33,
    refused=(("prumerge 0.33", "it does not fit"),),
    too_slow=0,
    steps=(TuningStep(40, 4), TuningStep(100, 3)),
    unreduced=trial("none", 1.0, 96, 95),
    trials=(SINGLE, LEFT, PAIR, DEAR),
    chosen=PAIR.name,
    refuted=None,
    single=SINGLE.name,
    against_single=paired_change(answers(92), answers(93)),
    next_best=SINGLE.name,
    against_next=paired_change(answers(92), answers(93)),
    effort=0.46,
    processor_seconds=480.0,
    created="2026-11-27T12:00:00+00:00",
    machine="2 cores of Some Processor",
    versions={"lvlm-export": "0.2.0", "torch": "2.13.0"},
)
REFUTED = replace(
    RESULT,
    chosen=SINGLE.name,
    refuted=PAIR.name,
    against_single=paired_change(answers(92), answers(90)),
    next_best=None,
    against_next=None,
)
