"""``lvlm-export verify``: does a bundle still say what PyTorch says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    bundle_argument,
    device_options,
    find_checkpoint,
    json_option,
    revision_option,
    wide_option,
)
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from lvlm_export.check.chain_run import ParitySample
    from lvlm_export.check.parity_report import AnswerParity, ParityReport
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.bundle.manifest import Manifest
    from lvlm_runtime.golden import Comparison

DEFAULT_SAMPLES = 2


@click.command(short_help="Compare a bundle with PyTorch.")
@bundle_argument
@click.option(
    "--model", metavar="PATH_OR_HUB_ID", help="The checkpoint [as the manifest names it]."
)
@revision_option
@click.option(
    "--samples",
    type=click.IntRange(0),
    metavar="N",
    help=f"Synthetic pictures per tile layout [{DEFAULT_SAMPLES}, or 0 with --image].",
)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A picture of your own.",
)
@click.option("--prompt", help="The question about --image.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=32,
    show_default=True,
    help="Tokens to compare.",
)
@click.option(
    "--golden",
    is_flag=True,
    help="Compare with the answers that the build kept in the bundle; needs neither the checkpoint"
    " nor PyTorch.",
)
@device_options
@wide_option
@json_option
def verify(
    bundle: Path,
    model: str | None,
    revision: str | None,
    samples: int | None,
    images: tuple[Path, ...],
    prompt: str | None,
    max_new_tokens: int,
    golden: bool,
    backend: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare every stage's hidden states and the greedy answers with PyTorch, at every ratio.

    Exits with 1 when they differ.
    """
    from lvlm_export.cli.console import open_progress, quiet_libraries

    if golden:
        given = (model, revision, samples, prompt, images or None)
        if any(each is not None for each in given):
            raise UsageError("--golden has its own picture and question; leave out the others")
        verify_golden(bundle, backend, device, threads, as_json)
        return
    if prompt is not None and not images:
        raise UsageError("--prompt needs a picture, --image FILE")
    count = samples if samples is not None else (0 if images else DEFAULT_SAMPLES)
    if not count and not images:
        raise UsageError("nothing to compare; give --samples 1 or more, or --image FILE")
    quiet_libraries()
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.session import Session

    opened = Bundle.open(bundle)
    say("loading PyTorch and reading the checkpoint", err=True)
    from lvlm_export.check.parity import synthetic_samples
    from lvlm_export.check.parity import verify as run_verify
    from lvlm_export.check.processor import check_processor
    from lvlm_export.plan.plan import make_plan, options_of

    checkpoint = open_checkpoint(opened, model, revision)
    plan = make_plan(checkpoint, options_of(opened.manifest))
    wanted = collect_samples(opened.manifest, count, images, prompt)
    session = Session.load(opened, backend, device, threads, exact=True)
    # Pictures of one's own may be letterboxed to the bundle's layout, which transformers does not do.
    drawn = synthetic_samples(opened.manifest.layouts, 1)
    say(check_processor(checkpoint, plan, session.encoder, drawn), err=True)
    steps = len(plan.budgets) * len(wanted)
    with open_progress().stage("comparing with PyTorch", steps) as advance:
        report = run_verify(session, checkpoint, plan, wanted, max_new_tokens, advance)
    if as_json:
        from lvlm_export.cli.console import echo_json

        echo_json(record(report))
    else:
        show(report)
    click.get_current_context().exit(0 if report.passed else 1)


def verify_golden(
    bundle: Path, backend: str, device: str, threads: int | None, as_json: bool
) -> None:
    """Compare answers with those of the build; leaves the command with 1 when they differ."""
    from lvlm_export.cli.console import echo_json
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.golden import compare_golden, comparison_record, read_golden
    from lvlm_runtime.session import Session

    opened = Bundle.open(bundle)
    expected = read_golden(opened)
    session = Session.load(opened, backend, device, threads)
    found = compare_golden(session, expected)
    passed = all(each.passed for each in found)
    where = f"{session.chain.backend.name} on {session.chain.backend.device}"
    if as_json:
        rows = [comparison_record(each) for each in found]
        echo_json({"passed": passed, "where": where, "answers": rows})
    else:
        for each in found:
            say(f"ratio {each.ratio:g}: {golden_outcome(each)}")
        say(f"{'PASS' if passed else 'FAIL'}  golden answers, {where}")
    click.get_current_context().exit(0 if passed else 1)


def golden_outcome(found: Comparison) -> str:
    """Equal, equal up to a near tie, or the first token that differs."""
    at = found.first_difference
    if at is None:
        return f"{len(found.got)} tokens equal"
    if found.near_tie is not None:
        return (
            f"{at} tokens equal, then a near tie (logits {found.near_tie:.1e} of the largest apart)"
        )
    return f"FAIL at token {at}"


def open_checkpoint(bundle: Bundle, model: str | None, revision: str | None) -> Checkpoint:
    """The checkpoint that a bundle was built from, and no other."""
    from lvlm_export.checkpoint.checkpoint import Checkpoint

    name = bundle.manifest.model if model is None else model
    try:
        directory = find_checkpoint(name, revision).directory
    except LvlmError as error:
        if model is not None:
            raise
        raise LvlmError(
            f"{error}; the bundle's manifest names it, give --model if it moved"
        ) from error
    checkpoint = Checkpoint.open(directory)
    if checkpoint.content_key() != bundle.manifest.checkpoint_key:
        raise LvlmError(
            f"{bundle.directory} was not built from the checkpoint in {directory}: its content"
            " differs; name the right one with --model, or build the bundle again"
        )
    return checkpoint


def collect_samples(
    manifest: Manifest, count: int, images: tuple[Path, ...], prompt: str | None
) -> list[ParitySample]:
    """Synthetic samples and the user's own."""
    from lvlm_export.check.chain_run import ParitySample
    from lvlm_export.check.parity import QUESTION, synthetic_samples
    from lvlm_runtime.image.picture import load_image

    samples = synthetic_samples(manifest.layouts, count)
    if images:
        pictures = tuple(load_image(path) for path in images)
        samples.append(ParitySample(pictures, QUESTION if prompt is None else prompt))
    return samples


def show(report: ParityReport) -> None:
    """Tables of stages and answers, and the verdict as the last line."""
    from lvlm_export.cli.console import new_table, show_table

    stages = new_table(
        "ratio", "stage", "worst error", "limit", "", right=("ratio", "worst error", "limit")
    )
    for row in report.stages:
        verdict = "pass" if row.passed else "FAIL"
        stages.add_row(f"{row.ratio:g}", row.stage, f"{row.error:.1e}", f"{row.limit:g}", verdict)
    show_table(stages)
    answers = new_table(
        "ratio", "sample", "greedy tokens against", "result", right=("ratio", "sample")
    )
    for answer in report.answers:
        answers.add_row(f"{answer.ratio:g}", str(answer.sample), answer.source, outcome(answer))
    show_table(answers)
    if report.ties:
        ties = new_table(
            "ratio",
            "sample",
            "near tie at",
            "tokens",
            "scores apart by",
            "limit",
            "",
            right=("ratio", "sample", "tokens", "scores apart by", "limit"),
        )
        for tie in report.ties:
            cells = (f"{tie.ratio:g}", str(tie.sample), tie.place, str(tie.differing))
            verdict = "pass" if tie.passed else "FAIL"
            ties.add_row(*cells, f"{tie.gap:.1e}", f"{tie.limit:g}", verdict)
        show_table(ties)
    say(verdict_line(report))


def outcome(answer: AnswerParity) -> str:
    """Equal, or the first token that differs."""
    at = answer.first_difference
    if at is None:
        return f"{len(answer.got)} equal"
    if answer.passed:
        return f"equal but for {len(answer.ties)} near ties, the first at token {at}"
    pair = [str(ids[at]) if at < len(ids) else "the end" for ids in (answer.expected, answer.got)]
    return f"FAIL at token {at}: {pair[0]} expected, {pair[1]} got"


def verdict_line(report: ParityReport) -> str:
    """PASS or FAIL, the worst error and where."""
    if not report.passed:
        return f"FAIL  {report.failure()}"
    worst = max(report.stages, key=lambda row: row.error)
    return (
        f"PASS  worst error {worst.error:.1e} (limit {worst.limit:g}) at {worst.stage}, ratio"
        f" {worst.ratio:g}; {len(report.answers)} answers equal{near_ties(report)}"
    )


def near_ties(report: ParityReport) -> str:
    """How many near ties were passed over, as the end of a line; nothing where there was none."""
    if not report.ties:
        return ""
    widest = max(tie.gap for tie in report.ties)
    return f" but for {len(report.ties)} near ties (scores within {widest:.1e} of the largest)"


def record(report: ParityReport) -> dict[str, Any]:
    """The report as plain JSON types."""
    import dataclasses

    def rows(items: Any) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(item), "passed": item.passed} for item in items]

    return {
        "passed": report.passed,
        "verdict": verdict_line(report),
        "stages": rows(report.stages),
        "answers": [
            {**row, "first_difference": answer.first_difference}
            for row, answer in zip(rows(report.answers), report.answers, strict=True)
        ],
        "ties": rows(report.ties),
    }
