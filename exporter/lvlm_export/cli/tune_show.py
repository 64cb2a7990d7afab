"""What ``lvlm-export tune`` shows and writes: lines, a table, the recipe, the result, the report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm_export.cli.console import say
from lvlm_profiles.report.tuning import TunedTrial, TuningResult
from lvlm_profiles.statistics import PairedChange

if TYPE_CHECKING:
    from lvlm_export.tune.contest import Contest, SearchGoal
    from lvlm_export.tune.costs import CostBasis
    from lvlm_export.tune.questions import Halves
    from lvlm_export.tune.search import Finding
    from lvlm_export.tune.space import Space, Trial, TrialPlan
    from lvlm_export.tune.state import SearchState

COMMENT = "found by lvlm-export tune"
RECIPE, RESULT, REPORT = "recipe.toml", "result.json", "report.html"
# What a file of each name that this command writes holds.
MARKS = {
    RECIPE: COMMENT.encode(),
    RESULT: b'"against_single"',
    REPORT: b'<meta name="generator" content="lvlm-export tune">',
}


def check_files(output: Path) -> None:
    """Refuse to replace what somebody else wrote, before anything is asked."""
    from lvlm_profiles.files import refuse_other

    for name, mark in MARKS.items():
        refuse_other(output / name, mark)


def opening_lines(
    contest: Contest, space: Space, halves: Halves, basis: CostBasis
) -> Iterator[str]:
    """What the search will do."""
    counts = halves.counts
    yield (
        f"questions {sum(counts)}: {counts[0]} to choose by, {counts[1]} held out, no picture in both"
    )
    left = len(space.plans) - len(contest.plans)
    yield (
        f"trials    {len(contest.plans)}; {len(space.refused)} more do not fit this model and {left}"
        " are slower than the goal"
    )
    if space.refused:
        name, why = space.refused[0]
        yield f"left out  {name}: {why}" + (" …" if len(space.refused) > 1 else "")
    yield f"goal      {goal_line(contest.goal, basis)}"
    steps = ", ".join(f"{rung.trials} on {rung.questions}" for rung in contest.rungs)
    yield f"halving   at most {steps}"
    yield f"costs     {cost_basis(basis)}"


def goal_line(goal: SearchGoal, basis: CostBasis) -> str:
    """What is looked for."""
    if goal.beats_single:
        return (
            "the most accurate that is no dearer than the best single method at ratio"
            f" {goal.against:g}, or the cheapest that is hardly less accurate"
        )
    most = "" if goal.most_cost is None else f" of at most {goal.most_cost:g} {basis.unit}"
    if goal.within is None:
        return f"the most accurate{most}"
    return f"the cheapest{most} that loses at most {100 * goal.within:g} points"


def cost_basis(basis: CostBasis) -> str:
    """What costs stand on."""
    if basis.device is None or basis.speed is None:
        return (
            f"share of the unreduced first token's FLOPs, {basis.text_tokens} text tokens; give"
            " --device for times"
        )
    return (
        f"ESTIMATED for {basis.device.title}, {basis.precision}, {basis.text_tokens} text tokens;"
        f" {basis.speed.shares.source}"
    )


def result_of(
    model: str,
    finding: Finding,
    contest: Contest,
    space: Space,
    state: SearchState,
    basis: CostBasis,
    seed: int,
) -> TuningResult:
    """The whole search as a record."""
    from lvlm_export.plan.versions import versions
    from lvlm_profiles.devices.machine import cores, processor

    counts = contest.halves.counts
    record = state.record
    return TuningResult(
        model=model,
        unit=basis.unit,
        basis=cost_basis(basis),
        most_cost=contest.goal.most_cost,
        within=contest.goal.within,
        seed=seed,
        search_questions=counts[0],
        held_questions=counts[1],
        against=contest.goal.against,
        refused=space.refused,
        too_slow=len(space.plans) - len(contest.plans),
        steps=finding.steps,
        unreduced=finding.unreduced,
        trials=finding.trials,
        chosen=finding.chosen.trial.name,
        refuted=name_of(finding.refuted),
        single=name_of(finding.single),
        against_single=finding.against_single,
        next_best=name_of(finding.next_best),
        against_next=finding.against_next,
        effort=record.done / record.alone if record.alone else 1.0,
        processor_seconds=record.processor_seconds,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=f"{cores()} cores of {processor()}",
        versions=versions(),
    )


def name_of(plan: TrialPlan | None) -> str | None:
    """A trial's name, where there is one."""
    return None if plan is None else plan.trial.name


def write_files(
    output: Path, result: TuningResult, chosen: Trial, flags: Mapping[str, str | int]
) -> None:
    """Recipe, result and report; ``flags`` of ``build`` go into the recipe."""
    import dataclasses
    import json

    from lvlm_export.tune.space import recipe_text
    from lvlm_profiles.files import refuse_other, write_whole
    from lvlm_profiles.report.html.tuning import tuning_page

    texts = {
        RECIPE: recipe_text(chosen, flags, f"{COMMENT}; lvlm-export build --recipe {RECIPE}"),
        RESULT: json.dumps(dataclasses.asdict(result), indent=1) + "\n",
        REPORT: tuning_page(result),
    }
    for name, text in texts.items():
        refuse_other(output / name, MARKS[name])
        write_whole(output / name, text)


def show(result: TuningResult, output: Path) -> None:
    """The finalists, what was chosen, and how sure that is."""
    from lvlm_export.cli.console import new_table, show_table

    numbers = ("cost", "measured ms", "search half", "held out", "change to 1.0", "p")
    table = new_table("trial", *numbers[:4], "95 % interval", *numbers[4:], "", right=numbers)
    for trial in (result.unreduced, *result.finalists):
        table.add_row(*cells(trial, result))
    show_table(table, ("95 % interval", "search half", "measured ms", "p"))
    say(
        f"asked     in {result.processor_seconds:.0f} s of the processor, with"
        f" {result.effort:.0%} of the operations of asking every trial by itself"
    )
    for line in verdict(result):
        say(line)
    say(f"report    {output / REPORT}, {RESULT}")
    words = ["lvlm-export", "build", "--model", result.model, "--recipe", str(output / RECIPE)]
    say(f"next      {shlex.join(words)}")


def verdict(result: TuningResult) -> Iterator[str]:
    """What was chosen, and how sure that is."""
    chosen = result.trial(result.chosen)
    yield f"best      {chosen.name}, cost {cost(chosen.cost, result)}"
    if chosen.held_out is not None:
        yield f"held out  {sure(chosen.held_out.against_unreduced)} to the unreduced model"
    change, where = result.against_single, f"at ratio {result.against:g}"
    if change is None or result.single is None:
        yield f"compared  with no single method: none {where} is among the trials"
    elif result.refuted is not None:
        yield (
            f"refuted   {result.refuted} was the best of the search half; held out, {sure(change)} to"
            f" {result.single}, which is chosen in its place"
        )
    elif result.single == result.chosen:
        yield f"compared  it is the best single method {where}"
    else:
        single = result.trial(result.single)
        yield (
            f"compared  {sure(change)} to the best single method {where}, {single.name}, cost"
            f" {cost(single.cost, result)}"
        )
    if result.against_next is not None and result.next_best is not None:
        after = result.trial(result.next_best)
        yield (
            f"next best {after.name}, cost {cost(after.cost, result)}; the best is"
            f" {sure(result.against_next)} to it"
        )


def cells(trial: TunedTrial, result: TuningResult) -> list[str]:
    """A row of the table."""
    measured = "-" if trial.measured_ms is None else f"{trial.measured_ms:.2f}"
    row = [trial.name, cost(trial.cost, result), measured, f"{trial.right / trial.asked:.1%}"]
    held = trial.held_out
    if held is None:
        return [*row, "-", "", "-", "-", ""]
    change = held.against_unreduced
    mark = "chosen" if trial.name == result.chosen else ""
    return [
        *row,
        f"{held.accuracy:.1%}",
        f"{held.low:.1%} to {held.high:.1%}",
        f"{100 * change.change:+.1f} ({change.lost} lost, {change.won} won)",
        f"{change.p:.2g}",
        mark,
    ]


def sure(change: PairedChange) -> str:
    """A change with its interval, in points."""
    return (
        f"{100 * change.change:+.1f} points (95 % {100 * change.low:+.1f} to {100 * change.high:+.1f},"
        f" p {change.p:.2g}, {change.questions} questions)"
    )


def cost(value: float, result: TuningResult) -> str:
    """With its unit."""
    return f"{value:.3g} ms" if result.unit == "ms" else f"{value:.3f}"
