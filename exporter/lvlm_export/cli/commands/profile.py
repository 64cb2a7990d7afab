"""``lvlm-export profile``: what every budget of a bundle costs here. Never imports torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export import __version__
from lvlm_export.cli.options import Ratio, bundle_argument, device_options, json_option
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from lvlm_profiles.report import Report
    from lvlm_profiles.report.figures import Accuracy
    from lvlm_runtime.bundle.manifest import Manifest
    from lvlm_runtime.profile.rounds import ProfilePlan
    from lvlm_runtime.session import Session

PROMPT = "Describe the picture."


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
    default=32,
    show_default=True,
    help="Tokens of every answer; stop tokens do not end it.",
)
@click.option(
    "--ratio",
    "ratios",
    type=Ratio(),
    multiple=True,
    help="Share of visual tokens KEPT; repeatable [all of the bundle's].",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    metavar="N",
    help="Measured rounds; each asks every ratio once [10].",
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
    if iterations is not None and duration is not None:
        raise UsageError("--iterations and --duration exclude each other; give one of them")
    load_before = os.getloadavg()[0]
    from lvlm_profiles.devices.device import load_device
    from lvlm_runtime.profile.rounds import check_duration
    from lvlm_runtime.profile.run import Options, profile_session
    from lvlm_runtime.session import Session

    check_duration(duration)
    if output is not None:
        make_directory(output)
    known_device = None if device_profile is None else load_device(device_profile)
    results = None if accuracy is None else read_accuracy(accuracy)
    start = time.perf_counter()
    session = Session.open(bundle, backend, device, threads)
    load_ms = (time.perf_counter() - start) * 1e3
    known = {} if results is None else results.of(session.bundle.manifest)
    plan = make_plan(session, prompt, images, ratios, answer_tokens, iterations, duration, warmup)
    options = Options(
        plan=plan,
        bundle=bundle,
        images=images,
        threads=threads,
        load_ms=load_ms,
        load_before=load_before,
        accuracy=known,
        sweep=sweep,
        device=known_device,
        tool=f"lvlm-export {__version__}",
    )
    report = profile_session(session, options, say)
    if output is not None:
        write_reports(report, output)
    kept = keep(report)
    if as_json:
        from lvlm_profiles.report import to_json

        click.echo(to_json(report), nl=False)
        return
    from lvlm_export.cli.profile_table import show

    show(report)
    if output is not None:
        click.echo(f"report    {output / 'report.html'}, report.md and report.json")
    click.echo(f"kept      {kept}")


def say(line: str) -> None:
    """What is being done, on stderr; between requests, so that nothing drawn is measured."""
    click.echo(f"{line} …", err=True)


def make_directory(output: Path) -> None:
    """Find out before the measurement, not after it, that a report cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"--output {output} is a file; name a directory") from None


def keep(report: Report) -> str:
    """Keep the report for ``run --ttft``; where, or why not."""
    from lvlm_runtime.profile import store as profile_store
    from lvlm_runtime.profile.rounds import LEAST_ROUNDS

    if report.protocol.rounds < LEAST_ROUNDS:
        return f"nowhere: `run --ttft` goes by profiles of at least {LEAST_ROUNDS} rounds"
    try:
        return f"{profile_store.keep(report)}, for `lvlm-export run --ttft`"
    except OSError as error:
        return f"nowhere, `run --ttft` will not know this profile: {error}"


def make_plan(
    session: Session,
    prompt: str,
    images: tuple[Path, ...],
    ratios: tuple[float, ...],
    answer_tokens: int,
    iterations: int | None,
    duration: float | None,
    warmup: int | None,
) -> ProfilePlan:
    """What to measure, with the bundle's own spelling of the ratios."""
    from lvlm_runtime.image import synthetic
    from lvlm_runtime.profile.rounds import ITERATIONS, ProfilePlan

    asked = ratios or tuple(budget.ratio for budget in session.bundle.manifest.budgets)
    return ProfilePlan(
        prompt=prompt,
        images=images or (synthetic.picture(),),
        ratios=tuple(dict.fromkeys(session.bundle.budget(ratio).ratio for ratio in asked)),
        answer_tokens=answer_tokens,
        iterations=ITERATIONS if iterations is None else iterations,
        duration_s=duration,
        warmup=warmup,
    )


@dataclass(frozen=True)
class Results:
    """What ``eval --json`` printed: of which model and method, and its rows over all kinds."""

    path: Path
    model: str
    method: str
    rows: dict[float, Accuracy]

    def of(self, manifest: Manifest) -> dict[float, Accuracy]:
        """The rows, if they are this bundle's; LvlmError otherwise."""
        if (self.model, self.method) != (manifest.model, manifest.method):
            raise LvlmError(
                f"{self.path} is of {self.model} with {self.method} and the bundle is of"
                f" {manifest.model} with {manifest.method}; give the bundle's own eval result"
            )
        return self.rows


def read_accuracy(path: Path) -> Results:
    """Read what ``lvlm-export eval --json`` printed."""
    import json

    from lvlm_profiles.report.figures import Accuracy

    fields = ("questions", "right", "accuracy", "low", "high")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {row["kind"] for row in content["rows"]}
        # Of several kinds, eval prints all together too.
        wanted = "all" if "all" in kinds else min(kinds)
        rows = {
            float(row["ratio"]): Accuracy(**{name: row[name] for name in fields})
            for row in content["rows"]
            if row["kind"] == wanted
        }
        return Results(path, str(content["model"]), str(content["method"]), rows)
    except FileNotFoundError:
        raise LvlmError(
            f"there is no eval result {path}; `lvlm-export eval --json` prints one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise LvlmError(
            f"{path} is no result of `lvlm-export eval --json` ({type(error).__name__}: {error})"
        ) from None


def write_reports(report: Report, directory: Path) -> None:
    """report.json, report.md and report.html."""
    from lvlm_profiles.report import write
    from lvlm_profiles.report.html.page import to_html
    from lvlm_profiles.report.markdown import to_markdown

    write(report, directory / "report.json")
    (directory / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (directory / "report.html").write_text(to_html(report), encoding="utf-8")
