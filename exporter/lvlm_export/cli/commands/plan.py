"""``lvlm-export plan``: which reductions a device can take, before anything is built.

A preset needs no torch; a checkpoint's configuration is read by transformers, which loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    DEMO,
    Milliseconds,
    Ratio,
    image_size_option,
    json_option,
    request_options,
    revision_option,
    wide_option,
)
from lvlm_export.reduction import DEFAULT_METHOD
from lvlm_profiles.cost.units import PRECISIONS
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from lvlm_export.advise.planning import Advice, Choices, PlanBasis
    from lvlm_export.advise.subject import Subject
    from lvlm_profiles.devices.device import Device
    from lvlm_profiles.planner.calibration import Calibration
    from lvlm_profiles.planner.judge import Candidate

METHODS_TRIED = (DEFAULT_METHOD, "illava", "visionzip", "fastv")
RATIOS_TRIED = (0.75, 0.5, 0.33, 0.2, 0.1)
ALL = "all"
SHAPE = "shape:"


@click.command(short_help="Say which ratios meet a latency and fit a device, before building.")
@click.argument("models", nargs=-1, metavar="[MODEL@TOKENS]...")
@click.option(
    "--model",
    metavar="MODEL",
    default=DEMO,
    show_default=True,
    help="Hugging Face directory or hub id, demo, or shape:NAME for the shapes of a published"
    " model, which needs no download (shape:llava-1.5-7b).",
)
@revision_option
@click.option(
    "--device", metavar="NAME", help="Device profile (lvlm-export list targets shows them)."
)
@click.option("--ttft", type=Milliseconds(), help="Longest time to first token, 300ms.")
@click.option("--tpot", type=Milliseconds(), help="Longest time per further token, 50ms.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help=f"How tokens are chosen; repeatable, all for every method [{', '.join(METHODS_TRIED)}].",
)
@click.option(
    "--ratio",
    "ratios",
    type=Ratio(),
    multiple=True,
    help="Share of visual tokens KEPT, in (0, 1]; repeatable"
    f" [{', '.join(f'{ratio:g}' for ratio in RATIOS_TRIED)} and the largest that fits].",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(list(PRECISIONS)),
    multiple=True,
    help="Element type, or int8 or int4 weights; repeatable [the device's own].",
)
@request_options
@image_size_option
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Fit the estimates to a report of lvlm-export profile.",
)
@click.option(
    "--compare-models",
    is_flag=True,
    help="Compare models at numbers of visual tokens by the published scaling law:"
    " shape:llava-onevision-0.5b@729 shape:llava-1.5-7b@36.",
)
@wide_option
@json_option
def plan(
    models: tuple[str, ...],
    model: str,
    revision: str | None,
    device: str | None,
    calibrate: Path | None,
    compare_models: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which methods, ratios and precisions fit a device's memory and meet a latency.

    Everything is computed from the model's shapes and the device profile: times are estimates.
    """
    if compare_models:
        from lvlm_export.cli.compare_models import show_comparison

        show_comparison(
            models, options["text_tokens"], lambda name: find_subject(name, None).dims, as_json
        )
        return
    if models:
        raise UsageError(f"{models[0]!r} goes with --compare-models; name one model with --model")
    if device is None:
        raise UsageError("--device is missing; lvlm-export list targets shows the device profiles")
    from lvlm_profiles.devices.device import load_device

    profile = load_device(device)
    subject = find_subject(model, options["image_size"], revision)
    fitted = None if calibrate is None else find_calibration(calibrate, subject, profile)
    from lvlm_export.advise.planning import PlanBasis
    from lvlm_profiles.planner.judge import Goal

    goal = Goal(profile, options["ttft"], options["tpot"], subject.context_length)
    basis = PlanBasis(subject, make_choices(profile, options), goal, fitted)
    advise(basis, options["image_size"], build_name(model, revision), as_json)


def advise(
    basis: PlanBasis, image_size: tuple[int, int] | None, build_model: str, as_json: bool
) -> None:
    """Judge every combination, show them, and name the best; LvlmError where none does."""
    from lvlm_export.advise.planning import build_command, judge_all
    from lvlm_export.cli.console import echo_json
    from lvlm_export.cli.plan_table import plan_record, recommendation_line, why_none

    check_known(basis)
    advice, command = judge_all(basis), None
    best = None if advice.best is None else advice.best.candidate
    refusal = None if best is None else why_not_built(basis.goal.device, best)
    if advice.best is not None and refusal is None:
        words = None if image_size is None else f"{image_size[1]}x{image_size[0]}"
        device = basis.goal.device.name
        command = build_command(basis.subject, advice.best.candidate, device, build_model, words)
    if as_json:
        echo_json(plan_record(advice, command))
    else:
        show(advice)
    if advice.best is None:
        raise LvlmError(why_none(advice))
    if not as_json:
        say(f"best    {recommendation_line(advice)}")
        say(f"next    {command}" if refusal is None else f"note    not built yet: {refusal}")


def why_not_built(device: Device, candidate: Candidate) -> str | None:
    """Why no bundle of a candidate is built for a device that it fits; None where one is."""
    from lvlm_export.plan.plan import BuildOptions, check_precision
    from lvlm_export.plan.weight_formats import parse_precision

    given = parse_precision(candidate.precision)
    options = BuildOptions(
        (1.0,), target=device.target, precision=given.activations, weights=given.weights
    )
    try:
        check_precision(options)
    except UsageError as error:
        return str(error)
    return None


def make_choices(profile: Device, options: dict[str, Any]) -> Choices:
    """What to try, with this command's defaults."""
    from lvlm_export.advise.planning import UNREDUCED, Choices
    from lvlm_export.reduction import METHODS, load_method

    methods = list(options["methods"] or METHODS_TRIED)
    if ALL in methods:
        methods += [name for name in METHODS if name != UNREDUCED]
    names = tuple(dict.fromkeys(load_method(name).name for name in methods if name != ALL))
    return Choices(
        methods=names,
        ratios=tuple(sorted(set(options["ratios"] or RATIOS_TRIED), reverse=True)),
        search=not options["ratios"],
        precisions=options["precisions"] or (profile.defaults.precision,),
        text_tokens=options["text_tokens"],
        answer_tokens=options["answer_tokens"],
    )


def find_subject(
    model: str, image_size: tuple[int, int] | None, revision: str | None = None
) -> Subject:
    """The shapes of a preset or a checkpoint."""
    from lvlm_export.advise.subject import subject_of_checkpoint, subject_of_preset
    from lvlm_profiles.shapes.presets import load_preset

    if model.startswith(SHAPE):
        if revision is not None:
            raise UsageError("--revision is for hub ids and a preset is shipped; leave it out")
        return subject_of_preset(load_preset(model.removeprefix(SHAPE)), image_size)
    from lvlm_export.cli.console import quiet_libraries
    from lvlm_export.cli.options import find_checkpoint

    quiet_libraries()
    directory = find_checkpoint(model, revision).directory
    say("loading PyTorch and reading the checkpoint's configuration", err=True)
    return subject_of_checkpoint(model, directory, image_size)


def build_name(model: str, revision: str | None) -> str:
    """What ``build --model`` takes: a preset's checkpoint on the hub, or the model itself."""
    if not model.startswith(SHAPE):
        return model if revision is None else f"{model}@{revision}"
    from lvlm_profiles.shapes.presets import load_preset

    return load_preset(model.removeprefix(SHAPE)).checkpoint


def find_calibration(path: Path, subject: Subject, profile: Device) -> Calibration:
    """A report's fit; LvlmError where it is of another model or kind of device."""
    from lvlm_profiles.planner.calibration import calibrate
    from lvlm_profiles.report import load_report

    return calibrate(load_report(path), subject.dims, profile)


def show(advice: Advice) -> None:
    """The table, what it stands on above and what it leaves out below."""
    from lvlm_export.cli.console import show_table
    from lvlm_export.cli.plan_table import LEAVE, basis_lines, plan_notes, plan_table

    for line in basis_lines(advice.basis):
        say(line)
    show_table(plan_table(advice), LEAVE)
    for line in plan_notes(advice.basis.choices):
        say(line)


def check_known(basis: PlanBasis) -> None:
    """Refuse a question that the device profile cannot answer; UsageError says what would help."""
    from lvlm_profiles.cost.memory import free_bytes
    from lvlm_profiles.cost.roofline import RatesError

    goal = basis.goal
    try:
        for precision in basis.choices.precisions:
            basis.speed.at(goal.device, precision)
    except RatesError as error:
        if goal.ttft_ms is not None or goal.tpot_ms is not None:
            raise UsageError(
                f"{error}, so its times cannot be estimated; give --calibrate a report of lvlm-export"
                " profile from there, or leave --ttft and --tpot out to judge memory alone"
            ) from None
        if free_bytes(goal.device) is None:
            raise UsageError(
                f"{error}, nor its memory, so there is nothing to plan with; give --calibrate a"
                " report of lvlm-export profile from there"
            ) from None
