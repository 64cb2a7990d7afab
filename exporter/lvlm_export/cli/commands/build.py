"""``lvlm-export build``: checkpoint to bundle."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lvlm_export.cli.console import say
from lvlm_export.cli.options import (
    DEMO,
    BuildTarget,
    MethodName,
    PrecisionWords,
    Ratio,
    SiteNames,
    find_checkpoint,
    image_sizes_option,
    revision_option,
    wide_option,
)
from lvlm_export.cli.recipes import RECIPE_HELP, recipe_option, set_placement
from lvlm_export.plan.targets import DIALECTS, TARGETS
from lvlm_export.plan.weight_formats import FLOATS, PARTS
from lvlm_export.reduction import DEFAULT_METHOD
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.bundle.build import BuildResult
    from lvlm_export.checkpoint.files import Located
    from lvlm_export.plan.weight_formats import BuildPrecision
    from lvlm_runtime.bundle.manifest import Manifest

BUNDLES = Path("bundles")


@click.command(short_help="Export a checkpoint into a bundle.", epilog=RECIPE_HELP)
@click.option(
    "--model",
    metavar="PATH_OR_HUB_ID",
    help="Hugging Face directory or hub id [the shipped demo model].",
)
@revision_option
@click.option(
    "--ratio",
    "ratios",
    type=Ratio(),
    multiple=True,
    help="Share of visual tokens KEPT, in (0, 1]; repeatable, the first is the bundle's default.",
)
@click.option(
    "--add-ratio",
    "added",
    type=Ratio(),
    multiple=True,
    help="Add a budget to a finished bundle: its reducers alone are exported; repeatable.",
)
@click.option(
    "--remove-ratio",
    "removed",
    type=Ratio(),
    multiple=True,
    help="Take a budget from a finished bundle; repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Directory of the bundle [bundles/<model name>].",
)
@click.option(
    "--method",
    type=MethodName(),
    metavar="NAME[+NAME]",
    default=DEFAULT_METHOD,
    show_default=True,
    help="How tokens are chosen and merged, see `lvlm-export list methods`; one before the decoder"
    " and one in it can be combined, visionzip+fastv.",
)
@click.option(
    "--sites",
    type=SiteNames(),
    metavar="SITE,…",
    help="Where the method acts, vision@5,decoder@8 [where it was published].",
)
@recipe_option
@click.option(
    "--target",
    type=BuildTarget(),
    default="cpu",
    show_default=True,
    help=f"Where the bundle is to run: {', '.join(TARGETS)}, or a device of"
    " `lvlm-export list targets`.",
)
@click.option(
    "--dialect",
    type=click.Choice(list(DIALECTS)),
    help=f"Operators of the graphs: {'; '.join(f'{k}, {v}' for k, v in DIALECTS.items())} [the"
    " target's own].",
)
@click.option(
    "--lm-head-splits",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Split the LM head along the vocabulary into N graphs, for devices that cannot allocate"
    " it whole.",
)
@click.option(
    "--precision",
    type=PrecisionWords(),
    metavar="NAME[,…]",
    help=f"Element type, {', '.join(FLOATS)}; int8 or int4 for weights of few bits, of all parts or"
    f" of some: {'=int8,'.join(PARTS)}=int8 [the target's own].",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default=True,
    help="For methods that draw numbers.",
)
@image_sizes_option
@click.option(
    "--context-length",
    type=click.IntRange(1),
    metavar="N",
    help="Positions for prompt and answer [the model's own].",
)
@click.option(
    "--baseline/--no-baseline",
    default=True,
    show_default=True,
    help="Include ratio 1.0, the unreduced model.",
)
@click.option(
    "--verify/--no-verify",
    "check",
    default=True,
    show_default=True,
    help="Publish only if the chain agrees with PyTorch.",
)
@click.option(
    "--force", is_flag=True, help="Replace a bundle of other options or another checkpoint."
)
@wide_option
def build(
    model: str | None,
    revision: str | None,
    image_size: tuple[tuple[int, int] | str, ...],
    added: tuple[float, ...],
    removed: tuple[float, ...],
    output: Path | None,
    check: bool,
    force: bool,
    **options: Any,
) -> None:
    """Export a checkpoint into a bundle: subgraphs, shared weights, one budget per ratio.

    Without --model the small demo model is used that comes with this package. A build that was
    interrupted continues where it stopped when the same command is typed again.

    --add-ratio and --remove-ratio change a finished bundle in seconds (one in bfloat16 in the time of a
    build): all but its ratios stays as it was built.
    """
    from lvlm_export.cli.console import open_progress, quiet_libraries

    if added or removed:
        change(model, revision, output, added, removed, check)
        return
    set_placement(options)
    set_precision(options)
    quiet_libraries()
    if options["target"] == "rtx":
        # A missing library is reported now and not after minutes of exporting.
        from lvlm_runtime.tensorrt.library import open_library

        open_library("rtx")
    say("loading PyTorch and reading the checkpoint", err=True)
    from lvlm_export.bundle.build import build as run_build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_export.plan.sizes import AUTO, picture_sizes
    from lvlm_runtime.backends import open_backend

    if check:
        # What the comparison with PyTorch runs the graphs with is missed now and not at its end.
        open_backend("onnxruntime", "cpu", None)
    found = find_checkpoint(DEMO if model is None else model, revision)
    target = BUNDLES / bundle_name(found) if output is None else output
    checkpoint = Checkpoint.open(found.directory)
    if image_size:
        tile = checkpoint.shape(None).vision.image_size if AUTO in image_size else 0
        options["image_size"], *more = picture_sizes(image_size, tile)
        options["more_sizes"] = tuple(more)
    try:
        result = run_build(
            checkpoint,
            found.name,
            BuildOptions(**options),
            target,
            open_progress(),
            verify_samples=int(check),
            force=force,
        )
    except OSError as error:
        # A failed write does not name the file; the user can act on the directory.
        error.filename = error.filename or str(target)
        raise
    if options["target"] == "rtx":
        from lvlm_export.cli.commands.engines import build_beside

        build_beside(target)
    report(result, target, found.name == DEMO)


def set_precision(options: dict[str, Any]) -> None:
    """What ``--precision`` says, as ``BuildOptions`` has it."""
    given: BuildPrecision | None = options.pop("precision")
    if given is not None:
        options["precision"], options["weights"] = given.activations, given.weights


# What goes with --add-ratio and --remove-ratio; all else is as the bundle was built.
WITH_CHANGES = ("model", "revision", "added", "removed", "output", "check")


def change(
    model: str | None,
    revision: str | None,
    output: Path | None,
    added: Sequence[float],
    removed: Sequence[float],
    check: bool,
) -> None:
    """Add ratios to a finished bundle and take some from it."""
    from lvlm_export.cli.console import open_progress, quiet_libraries

    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name not in WITH_CHANGES:
            raise UsageError(
                f"--add-ratio and --remove-ratio take all else from the bundle; leave out"
                f" {option.opts[0]}, or build a new bundle"
            )
    quiet_libraries()
    say("loading PyTorch and reading the checkpoint", err=True)
    from lvlm_export.bundle.build import change_ratios
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_runtime.backends import open_backend
    from lvlm_runtime.bundle.bundle import read_manifest
    from lvlm_runtime.bundle.files import SIGNATURE

    if check:
        open_backend("onnxruntime", "cpu", None)
    target = output
    if target is None:
        target = BUNDLES / bundle_name(find_checkpoint(DEMO if model is None else model, revision))
    manifest = read_manifest(target)
    found = find_checkpoint(manifest.model if model is None else model, revision)
    beside = [each for each in ("engines", SIGNATURE) if (target / each).exists()]
    result = change_ratios(
        Checkpoint.open(found.directory), target, added, removed, open_progress(), int(check)
    )
    report(result, target, found.name == DEMO)
    if beside and not result.reused:
        say(
            f"note    {' and '.join(beside)} of the bundle before are gone: they were of its ratios;"
            " make them again",
            err=True,
        )


def bundle_name(found: Located) -> str:
    """Of the bundle's directory where none is given: the model's, without its place or commit."""
    name = Path(found.name).name
    return name if Path(found.name).is_absolute() else name.partition("@")[0]


def report(result: BuildResult, target: Path, is_demo: bool) -> None:
    """What was built and what to type next."""
    from lvlm_export.bundle.publish import left_behind
    from lvlm_export.check.processor import EQUAL
    from lvlm_export.cli.console import show_table, size
    from lvlm_export.cli.summary import budget_bytes, graph_bytes, total_bytes, weight_bytes
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.bundle.generation import read_generation
    from lvlm_runtime.golden import FILE as GOLDEN
    from lvlm_runtime.golden import read_golden

    manifest = result.manifest
    if result.reused:
        say(f"Already built, nothing to do: {target}")
    else:
        show_table(budget_table(manifest), ("layout",))
        sizes = one_size(manifest)
        if sizes is not None:
            say(sizes)
        reducers = budget_bytes(manifest, *manifest.budgets)
        say(
            f"weights {size(weight_bytes(manifest))}, stored once for all ratios;"
            f" graphs {size(graph_bytes(manifest))}; reducers of all ratios {size(reducers)}"
        )
        say(f"bundle  {target} ({size(total_bytes(manifest))})")
        if manifest.precision == "bfloat16":
            say(
                "parity  of the same graphs in float32: ONNX Runtime has no bfloat16 on a CPU, so"
                " its rounding is unchecked until TensorRT runs it"
            )
        if manifest.quantised:
            say(
                "parity  with PyTorch of the same rounded weights; what rounding costs in answers:"
                f" lvlm-export eval {shlex.quote(str(target))}"
            )
    if GOLDEN in manifest.files:
        compared = read_golden(Bundle(target, manifest)).processor
        if compared != EQUAL:
            say(f"warning {compared}", err=True)
    for sentence in read_generation(Bundle(target, manifest)).sentences():
        say(f"rules   {sentence}")
    left = left_behind(target)
    if left is not None:
        say(
            f"note    {left} holds files of a replaced bundle that a program has open; the next"
            " build removes it",
            err=True,
        )
    say(f"next    {next_command(target, is_demo)}")


def budget_table(manifest: Manifest) -> Any:
    """Ratio, visual tokens at each stage and the ratio achieved, per tile layout."""
    from lvlm_export.cli.console import new_table
    from lvlm_export.cli.summary import count_arrows

    table = new_table(
        "ratio", "layout", "vision, per tile", "decoder, per image", "kept", right=("ratio",)
    )
    for budget in manifest.budgets:
        for part in budget.layouts:
            kept = f"{part.tokens_out} of {part.tokens_full} = {part.achieved:.3f}"
            if part.tokens_out == 0:
                kept = f"none after {part.decoder[-1].site}; mean over layers {part.achieved:.3f}"
            table.add_row(
                f"{budget.ratio:g}", part.layout, *count_arrows(manifest, budget, part), kept
            )
    return table


def one_size(manifest: Manifest) -> str | None:
    """What happens to pictures of other shapes where a bundle with tiles has one layout for one."""
    tiled = [each for each in manifest.layouts if each.kind in ("single", "tiles")]
    if len(tiled) != 1:
        return None
    size = f"{tiled[0].image_width}x{tiled[0].image_height}"
    return (
        f"sizes   tiles are laid out for pictures like {size}, others are padded to that shape;"
        " --image-size auto adds the usual shapes"
    )


def next_command(target: Path, is_demo: bool) -> str:
    """The command for a first question to the new bundle."""
    image, question = "picture.jpg", "What is in the picture?"
    if is_demo:
        from lvlm_export.demo import PICTURES
        from lvlm_profiles.readers import load_json

        entry = load_json(PICTURES / "questions.json")[0]
        image, question = str(PICTURES / entry["image"]), entry["question"]
    return shlex.join(["lvlm-export", "run", str(target), "--image", image, question])
