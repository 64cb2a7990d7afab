"""``lvlm-export tune``: search for the method, sites, split and ratio that suit a model."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    DEMO,
    Milliseconds,
    Points,
    Ratio,
    image_size_option,
    images_option,
    json_option,
    revision_option,
    wide_option,
)
from lvlm_export.plan.targets import BUNDLE_PRECISIONS
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.tune.costs import CostBasis
    from lvlm_export.tune.questions import Halves

RATIOS_TRIED = (0.5, 0.33, 0.2)
DEMO_QUESTIONS = 2000


@click.command(
    short_help="Search for the reduction that suits a model, its questions and a device."
)
@click.option(
    "--model",
    metavar="PATH_OR_HUB_ID",
    default=DEMO,
    help="Hugging Face directory or hub id [the shipped demo model].",
)
@revision_option
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Questions like those that the bundle is for, in the formats of `eval`; repeatable [the"
    " demo's own, for the demo model].",
)
@images_option
@click.option(
    "--questions",
    type=click.IntRange(2),
    metavar="N",
    help=f"Questions of both halves together [all; {DEMO_QUESTIONS} of the demo's].",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="How tokens are chosen, tome or tome+fastv; repeatable [every method, and every pair].",
)
@click.option(
    "--ratio",
    "ratios",
    type=Ratio(),
    multiple=True,
    help="Share of visual tokens KEPT; repeatable"
    f" [{', '.join(f'{ratio:g}' for ratio in RATIOS_TRIED)}].",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Device profile that times are estimated for (lvlm-export list targets) [none; costs are"
    " shares of the unreduced model's FLOPs].",
)
@click.option(
    "--precision",
    type=click.Choice(BUNDLE_PRECISIONS),
    help="Element type on the device [the device's own].",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Fit the estimates to a report of lvlm-export profile.",
)
@click.option("--ttft", type=Milliseconds(), help="Longest time to first token, 300ms.")
@click.option(
    "--within",
    type=Points(),
    help="Points of accuracy that may be lost, 1%; the cheapest is chosen.",
)
@click.option(
    "--against",
    type=Ratio(),
    metavar="RATIO",
    help="Ratio of the best single method that the recipe is compared with; without --ttft and"
    " --within it is to be no dearer and no less accurate [the one tried that is nearest to 0.33].",
)
@click.option(
    "--finalists",
    type=click.IntRange(2),
    metavar="N",
    default=8,
    show_default=True,
    help="Trials that answer all questions.",
)
@click.option(
    "--first",
    type=click.IntRange(1),
    metavar="N",
    default=40,
    show_default=True,
    help="Questions that every trial answers.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the order and the halves of the questions, and of methods that draw numbers.",
)
@click.option("--measure", is_flag=True, help="Build the finalists and measure them here.")
@click.option("--ray", is_flag=True, help="Ask as tasks of Ray, on a cluster or on this machine.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("tune"),
    show_default=True,
    help="Directory of the recipe, the result, the report and the state; typing the same command"
    " again goes on where it stopped.",
)
@image_size_option
@wide_option
@json_option
def tune(
    model: str,
    revision: str | None,
    device: str | None,
    output: Path,
    seed: int,
    ray: bool,
    measure: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find what to build: the best of all methods, sites, splits and ratios for these questions.

    All trials answer few questions, the better half more, the last all, in PyTorch. One half of the
    questions chooses; the other half says how accurate the chosen one is, and whether it is at least
    as accurate as the best single method.
    """
    from lvlm_export.cli.console import open_progress, quiet_libraries
    from lvlm_export.cli.options import find_checkpoint
    from lvlm_export.cli.tune_show import check_files, write_files

    check_goal(device, options)
    check_files(output)
    quiet_libraries()
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.checkpoint.preflight import preflight
    from lvlm_export.tune.asking import AskOptions
    from lvlm_export.tune.contest import find_space, make_contest, search_goal
    from lvlm_export.tune.search import Search
    from lvlm_export.tune.state import SearchState

    located = find_checkpoint(model, revision)
    checkpoint = Checkpoint.open(located.directory)
    preflight(checkpoint, options["image_size"])
    halves = find_questions(model, options, seed)
    basis = find_basis(model, checkpoint, device, options, halves)
    ratios = tuple(set(options["ratios"])) or RATIOS_TRIED
    goal = search_goal(options["ttft"], options["within"], options["against"], ratios)
    space = find_space(basis, options["methods"], ratios)
    contest = make_contest(basis, space, halves, goal, options["finalists"], options["first"])
    asking = AskOptions(options["max_new_tokens"], options["image_size"], seed)
    run = run_identity(checkpoint, contest, halves, asking, basis)
    output.mkdir(parents=True, exist_ok=True)
    names = [plan.trial.name for plan in (contest.unreduced, *contest.plans)]
    state = SearchState(output / "state.json", run, names, halves.borders)
    from lvlm_export.cli.tune_show import opening_lines

    for line in opening_lines(contest, space, halves, basis):
        say(line, err=True)
    progress = open_progress()
    finding = Search(contest, state, make_asker(checkpoint, asking, ray), progress).run()
    from lvlm_export.cli.commands.plan import build_name
    from lvlm_export.cli.tune_show import result_of, show

    result = result_of(build_name(model, revision), finding, contest, space, state, basis, seed)
    if measure:
        result = with_measured(checkpoint, model, result, contest, halves, options, seed, output)
    write_files(output, result, finding.chosen.trial, recipe_flags(seed, device, basis, options))
    if as_json:
        import dataclasses

        from lvlm_export.cli.console import echo_json

        echo_json(dataclasses.asdict(result))
    else:
        show(result, output)


def recipe_flags(
    seed: int, device: str | None, basis: CostBasis, options: dict[str, Any]
) -> dict[str, str | int]:
    """What a build has to have in common with the search beside the trial."""
    flags: dict[str, str | int] = {"seed": seed}
    if options["image_size"] is not None:
        flags["image_size"] = size_words(options["image_size"])
    if device is not None:
        flags |= {"target": device, "precision": basis.precision}
    return flags


def size_words(size: tuple[int, int]) -> str:
    """A picture's height and width as they are typed."""
    return f"{size[1]}x{size[0]}"


def check_goal(device: str | None, options: dict[str, Any]) -> None:
    """UsageError for options that contradict."""
    if any(ratio == 1 for ratio in options["ratios"]):
        raise UsageError("ratio 1 is the unreduced model, which is always asked; leave it out")
    if device is None:
        for name in ("ttft", "calibrate", "precision"):
            if options[name] is not None:
                raise UsageError(
                    f"--{name} needs --device, whose times it is about; lvlm-export list targets"
                    " shows the device profiles"
                )


def find_questions(model: str, options: dict[str, Any], seed: int) -> Halves:
    """The questions in two halves; UsageError where there are none."""
    from lvlm_export.study.evaluation import read_questions
    from lvlm_export.tune.questions import of_files, of_samples, split_halves

    most = options["questions"]
    if options["data"]:
        read = [q for file in options["data"] for q in read_questions(file, options["images"])]
        return split_halves(of_files(read), most, seed)
    if model != DEMO:
        raise UsageError(
            "--data is missing; only the demo model has questions of its own (see lvlm-export eval"
            " --help for the format)"
        )
    from lvlm_export.demo.questions import KINDS, evaluation_set

    count = -(-(most or DEMO_QUESTIONS) // len(KINDS)) * len(KINDS)
    return split_halves(of_samples(evaluation_set(count, seed)), most, seed)


def find_basis(
    model: str,
    checkpoint: Checkpoint,
    device: str | None,
    options: dict[str, Any],
    halves: Halves,
) -> CostBasis:
    """What costs are counted with; prompts are as long as the questions in the median."""
    from lvlm_export.advise.subject import subject_of_checkpoint
    from lvlm_export.cli.commands.plan import find_calibration
    from lvlm_export.tune.costs import CostBasis
    from lvlm_export.tune.questions import text_lengths
    from lvlm_profiles.cost.roofline import PUBLISHED
    from lvlm_profiles.devices.device import load_device
    from lvlm_profiles.planner.judge import Speed

    subject = subject_of_checkpoint(model, checkpoint.directory, options["image_size"])
    shape = checkpoint.shape(options["image_size"])
    lengths = text_lengths(halves, checkpoint.encoder, shape, options["max_new_tokens"])
    text = round(statistics.median(lengths))
    if device is None:
        return CostBasis(subject, text)
    profile = load_device(device)
    report = options["calibrate"]
    fitted = None if report is None else find_calibration(report, subject, profile)
    speed = Speed(PUBLISHED) if fitted is None else fitted.speed
    precision = options["precision"] or profile.defaults.precision
    return CostBasis(subject, text, profile, precision, speed)


def run_identity(
    checkpoint: Checkpoint, contest: Any, halves: Halves, asking: Any, basis: CostBasis
) -> dict[str, str]:
    """What must be equal to go on with a search, by names that a user knows."""
    from lvlm_export.plan.versions import source_key, versions

    trials = "; ".join(plan.trial.name for plan in contest.plans)
    size = asking.image_size
    costs = ", ".join(f"{contest.costs[plan.trial.name]:.6g}" for plan in contest.plans)
    return {
        "checkpoint": checkpoint.content_key(),
        "set of questions": halves.digest,
        "--seed": str(asking.seed),
        "--max-new-tokens": str(asking.max_new_tokens),
        "--image-size": "none" if size is None else size_words(size),
        "--within": f"{contest.goal.within}",
        "--ttft": f"{contest.goal.most_cost}",
        "--against": f"{contest.goal.against}",
        "--finalists": str(contest.finalists),
        "--first": str(contest.first),
        "set of trials (--method, --ratio)": trials,
        "basis of costs (--device, --precision, --calibrate)": f"{costs} {basis.unit}",
        "version of lvlm-export": source_key(),
        "version of a library": ", ".join(f"{name} {v}" for name, v in versions().items()),
    }


def make_asker(checkpoint: Checkpoint, asking: Any, ray: bool) -> Any:
    """What answers, in this process or on Ray."""
    if ray:
        from lvlm_export.tune.on_ray import RayAsker

        return RayAsker(checkpoint.directory, asking).ask
    from lvlm_export.tune.asking import Asker

    return Asker(checkpoint, asking).ask


def with_measured(
    checkpoint: Checkpoint,
    model: str,
    result: Any,
    contest: Any,
    halves: Halves,
    options: dict[str, Any],
    seed: int,
    output: Path,
) -> Any:
    """The result with the finalists' measured times, and the unreduced model's."""
    from dataclasses import replace

    from lvlm_export.cli.console import open_progress
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_export.tune.measure import measure_bundles

    names = {each.name for each in result.finalists}
    plans = [contest.unreduced, *(p for p in contest.plans if p.trial.name in names)]
    build = BuildOptions((0.5,), seed=seed, image_size=options["image_size"])
    times = measure_bundles(
        checkpoint, model, plans, halves.held, build, output / "bundles", open_progress()
    )
    measured = [replace(each, measured_ms=times.get(each.name)) for each in result.trials]
    whole = replace(result.unreduced, measured_ms=times[result.unreduced.name])
    return replace(result, trials=tuple(measured), unreduced=whole)
