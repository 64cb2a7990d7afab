"""``lvlm-export profile``: what every budget of a bundle costs here. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    bundle_argument,
    device_options,
    json_option,
    ratios_option,
    wide_option,
)
from lvlm_runtime.errors import UsageError
from lvlm_runtime.profile.options import ANSWER_TOKENS, ITERATIONS, PROMPT, ProfileOptions

if TYPE_CHECKING:
    from lvlm_profiles.report import Report

# What each file says of who wrote it, so that no other is replaced.
MARKS = {
    "report.json": b'"kind": "lvlm-export profile"',
    "report.md": b"\n- lvlm-export ",
    "report.html": b'<meta name="generator" content="lvlm-export ',
}


@click.command(short_help="Measure what every ratio of a bundle costs on this machine.")
@bundle_argument
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Picture file; repeatable [one made for the profile].",
)
@click.option("--prompt", default=PROMPT, show_default=True, help="The question.")
@click.option(
    "--answer-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=ANSWER_TOKENS,
    show_default=True,
    help="Tokens of every answer; stop tokens do not end it.",
)
@ratios_option
@click.option(
    "--iterations",
    type=click.IntRange(1),
    metavar="N",
    help=f"Measured rounds; each asks every ratio once [{ITERATIONS}].",
)
@click.option(
    "--duration",
    type=float,
    metavar="S",
    help="Measure rounds for so many seconds instead, and at least 5.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    metavar="N",
    help="Rounds that are not counted [until times settle].",
)
@click.option(
    "--sweep",
    is_flag=True,
    help="Measure every subgraph over its token count too, and mark where latency bends and jumps.",
)
@click.option(
    "--device-profile",
    metavar="NAME",
    help="Device profile, as agx_orin_64gb, for the share of its roofline that is reached.",
)
@click.option(
    "--accuracy",
    type=click.Path(path_type=Path),
    help="Result of `lvlm-export eval --json`, to stand beside the times.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Directory for report.json, report.md and report.html.",
)
@device_options
@wide_option
@json_option
def profile(
    bundle: Path,
    images: tuple[Path, ...],
    prompt: str,
    answer_tokens: int,
    ratios: tuple[float, ...],
    iterations: int | None,
    duration: float | None,
    warmup: int | None,
    sweep: bool,
    device_profile: str | None,
    accuracy: Path | None,
    output: Path | None,
    backend: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure time to first token, time per token, memory and energy of every ratio.

    Ratios are asked in interleaved rounds. `lvlm-export run --ttft` takes its ratio from the last
    profile of a bundle on this machine.
    """
    from lvlm_profiles.devices.device import load_device
    from lvlm_runtime.profile.accuracy import read_eval_result
    from lvlm_runtime.profile.run import profile_bundle

    options = ProfileOptions(
        prompt=prompt,
        images=images or None,
        ratios=ratios,
        answer_tokens=answer_tokens,
        iterations=iterations,
        duration_s=duration,
        warmup=warmup,
        sweep=sweep,
        accuracy=None if accuracy is None else read_eval_result(accuracy),
        roofline=None if device_profile is None else load_device(device_profile),
        backend=backend,
        device=device,
        threads=threads,
    )
    if output is not None:
        make_directory(output)
    report = profile_bundle(bundle, options, announce)
    if output is not None:
        write_reports(report, output)
    kept = keep(report)
    if as_json:
        from lvlm_profiles.report import to_json

        say(to_json(report), nl=False)
        return
    from lvlm_export.cli.profile_table import show_report

    show_report(report)
    if output is not None:
        say(f"report    {output / 'report.html'}, report.md and report.json")
    say(f"kept      {kept}")


def announce(line: str) -> None:
    """What is being done, on stderr; between requests, so that nothing drawn is measured."""
    say(f"{line} …", err=True)


def make_directory(output: Path) -> None:
    """Find out before the measurement, not after it, that a report cannot be written."""
    from lvlm_profiles.files import refuse_other
    from lvlm_profiles.readers import what_is

    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"--output {output} is {what_is(output)}; name a directory") from None
    for name, mark in MARKS.items():
        refuse_other(output / name, mark)


def keep(report: Report) -> str:
    """Keep the report for ``run --ttft``; where, or why not."""
    from lvlm_runtime.profile.rounds import LEAST_ROUNDS
    from lvlm_runtime.profiled import keep_report

    if report.protocol.rounds < LEAST_ROUNDS:
        return f"nowhere: `run --ttft` goes by profiles of at least {LEAST_ROUNDS} rounds"
    try:
        return f"{keep_report(report)}, for `lvlm-export run --ttft`"
    except OSError as error:
        return f"nowhere, `run --ttft` will not know this profile: {error}"


def write_reports(report: Report, directory: Path) -> None:
    """report.json, report.md and report.html."""
    from lvlm_profiles.files import refuse_other, write_whole
    from lvlm_profiles.report import to_json
    from lvlm_profiles.report.html.page import to_html
    from lvlm_profiles.report.markdown import to_markdown

    texts = (to_json(report), to_markdown(report), to_html(report))
    for (name, mark), text in zip(MARKS.items(), texts, strict=True):
        refuse_other(directory / name, mark)
        write_whole(directory / name, text)
