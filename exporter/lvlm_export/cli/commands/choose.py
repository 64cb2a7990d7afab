"""``lvlm-export choose``: the ratio that a method's own search finds for a model and pictures."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    DEMO,
    find_checkpoint,
    image_size_option,
    images_option,
    json_option,
    revision_option,
    wide_option,
)

if TYPE_CHECKING:
    from lvlm_export.study.choosing import Withdrawal

SAMPLES = 20


@click.command(short_help="The ratio that a method's own search finds.")
@click.option(
    "--model",
    metavar="PATH_OR_HUB_ID",
    default=DEMO,
    help="Hugging Face directory or hub id [the shipped demo model].",
)
@revision_option
@click.option(
    "--method",
    type=click.Choice(("vtw", "prumerge")),
    required=True,
    help="vtw looks for the first decoder layer at which visual tokens may leave, prumerge for the"
    " share of patches that stand out.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Questions like those that the bundle is for, in the format of `eval`; their answers are"
    " not used.",
)
@images_option
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    default=SAMPLES,
    show_default=True,
    help="Only the first N questions.",
)
@click.option(
    "--divergence",
    type=click.FloatRange(0, min_open=True),
    metavar="NATS",
    default=0.003,
    show_default=True,
    help="Largest mean divergence of the first answer token that passes, for vtw. Published: 0.003"
    " for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-1.6-7B.",
)
@image_size_option
@wide_option
@json_option
def choose(
    model: str,
    revision: str | None,
    method: str,
    data: Path,
    images: Path | None,
    limit: int,
    divergence: float,
    image_size: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Run a method's search for its place or count on sample questions, in PyTorch.

    VTW and PruMerge were published with a rule instead of a ratio. The rule is applied here once;
    its result is the --ratio to build with.
    """
    from lvlm_export.check.chain_run import ParitySample
    from lvlm_export.cli.console import open_progress, quiet_libraries
    from lvlm_export.study.evaluation import read_questions
    from lvlm_runtime.image.picture import load_image

    quiet_libraries()
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.checkpoint.preflight import preflight
    from lvlm_export.study.choosing import measure_outlier_shares, measure_withdrawals

    checkpoint = Checkpoint.open(find_checkpoint(model, revision).directory)
    preflight(checkpoint, image_size)
    samples = [
        ParitySample((load_image(question.image),), question.question)
        for question in read_questions(data, images)[:limit]
    ]
    if method == "vtw":
        with open_progress().stage("withdrawing visual tokens", len(samples)) as advance:
            layers = measure_withdrawals(checkpoint, samples, image_size, advance)
        ratio = show_layers(layers, divergence, len(samples), as_json)
    else:
        with open_progress().stage("scoring patches", len(samples)) as advance:
            shares = measure_outlier_shares(checkpoint, samples, image_size, advance)
        ratio = show_shares(shares, len(samples), as_json)
    if not as_json:
        say(f"next    {build_command(model, revision, method, ratio, image_size)}")


def build_command(
    model: str,
    revision: str | None,
    method: str,
    ratio: float,
    image_size: tuple[int, int] | None,
) -> str:
    """What builds a bundle at the ratio that was found."""
    words = [
        "lvlm-export",
        "build",
        "--model",
        model,
        "--method",
        method,
        "--ratio",
        f"{ratio:.4g}",
    ]
    if revision is not None:
        words += ["--revision", revision]
    if image_size is not None:
        words += ["--image-size", f"{image_size[1]}x{image_size[0]}"]
    return shlex.join(words)


def show_layers(
    rows: Sequence[Withdrawal], divergence: float, samples: int, as_json: bool
) -> float:
    """VTW: a table of all layers and the first that passes, whose ratio is returned."""
    from lvlm_export.cli.console import echo_json, new_table, show_table
    from lvlm_export.reduction.methods.vtw import choose_layer

    layer = choose_layer({row.layer: row.divergence for row in rows}, divergence)
    chosen = next(row for row in rows if row.layer == layer)
    if as_json:
        echo_json(
            {
                "method": "vtw",
                "samples": samples,
                "limit": divergence,
                "ratio": chosen.ratio,
                "layers": [dataclasses.asdict(row) for row in rows],
            }
        )
        return chosen.ratio
    table = new_table("layer", "ratio", "divergence", "", right=("layer", "ratio", "divergence"))
    for row in rows:
        mark = "first that passes" if row is chosen else ""
        table.add_row(str(row.layer), f"{row.ratio:.4g}", f"{row.divergence:.2g}", mark)
    show_table(table)
    return chosen.ratio


def show_shares(shares: Sequence[float], samples: int, as_json: bool) -> float:
    """PruMerge: the mean share that its rule keeps, which is returned, and how far pictures differ."""
    from lvlm_export.cli.console import echo_json

    ratio, least, most = statistics.fmean(shares), min(shares), max(shares)
    if as_json:
        echo_json({"method": "prumerge", "samples": samples, "ratio": ratio, "shares": shares})
        return ratio
    say(
        f"the rule keeps {ratio:.1%} of a picture's tokens in the mean, from {least:.1%} to"
        f" {most:.1%} over {len(shares)} pictures"
    )
    return ratio
