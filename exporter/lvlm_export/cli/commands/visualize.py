"""``lvlm-export visualize``: what becomes of patches at each site. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument, device_options, ratio_option
from lvlm_runtime.errors import LvlmError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from lvlm_export.study.merging import Merge
    from lvlm_export.study.panels import Panel
    from lvlm_runtime.chain.recorder import Reduced
    from lvlm_runtime.session import Session

SUFFIXES = (".png", ".html", ".gif")


@click.command(short_help="Draw what becomes of a picture's patches at each site.")
@bundle_argument
@click.option("--image", type=click.Path(path_type=Path), required=True, help="Picture file.")
@ratio_option
@click.option(
    "--prompt",
    default="What is in the picture?",
    show_default=True,
    help="The question; sites in the decoder and some methods depend on it.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="File to write, .png (all sites side by side), .html (plays, with a slider) or .gif (an"
    " animation); repeatable.",
)
@device_options
def visualize(
    bundle: Path,
    image: Path,
    ratio: float | None,
    prompt: str,
    output: tuple[Path, ...],
    backend: str,
    device: str,
    threads: int | None,
) -> None:
    """Draw which patches stay, are merged into which or are dropped at each site, over what the model sees."""
    for path in output:
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"{path} is neither .png, .html nor .gif; give one of them to --output"
            )
    from lvlm_export.study.picture_page import draw_page
    from lvlm_export.study.pictures import MARKS, draw_frames, draw_sheet, save_frames, save_sheet
    from lvlm_profiles.files import refuse_other, whole_file, write_whole
    from lvlm_runtime.session import Session

    for path in output:
        refuse_other(path, MARKS[path.suffix.lower()])
    session = Session.open(bundle, backend, device, threads)
    picture, sites = run_picture(session, image, prompt, ratio)
    manifest = session.bundle.manifest
    kept = session.bundle.budget(ratio).ratio
    heading = f"{manifest.method} at ratio {kept:g}: {image.name}"
    for path in output:
        refuse_other(path, MARKS[path.suffix.lower()])
        if path.suffix.lower() == ".html":
            write_whole(path, draw_page(picture, sites, heading))
        else:
            with whole_file(path) as stream:
                if path.suffix.lower() == ".gif":
                    save_frames(draw_frames(picture, sites, heading), stream)
                else:
                    save_sheet(draw_sheet(picture, sites, heading), stream)
        say(f"wrote {path}")
    for panel in sites:
        say(f"{panel.title}: {panel.caption}")


def run_picture(
    session: Session, image: Path, prompt: str, ratio: float | None
) -> tuple[Image.Image, list[Panel]]:
    """What the model sees of a picture, and its sites at a ratio.

    Raises:
        UsageError: Nothing is reduced at this ratio.
        LvlmError: The model packs several tiles, whose places are not those of one grid.
    """
    from lvlm_export.study.merging import find_merge
    from lvlm_export.study.panels import make_panels
    from lvlm_runtime.bundle.route import route
    from lvlm_runtime.chain.recorder import Recorder
    from lvlm_runtime.image.picture import load_image
    from lvlm_runtime.image.preprocess import preprocess
    from lvlm_runtime.image.seen import seen_picture

    manifest, budget = session.bundle.manifest, session.bundle.budget(ratio)
    opened = load_image(image)
    layout = session.layout([opened])
    assert layout is not None
    part = budget.layout(layout.name)
    if part.packer is not None:
        raise LvlmError(
            f"{manifest.family} packs several tiles into one sequence, which is not drawn yet;"
            " visualize takes bundles of models with one tile per picture"
        )
    steps = route(manifest, budget, part)
    reductions = [step.reduction for step in steps if step.reduction is not None]
    if not reductions:
        raise UsageError(f"nothing is reduced at ratio {budget.ratio:g}; give a smaller --ratio")
    merges: dict[str, Merge] = {}

    def keep(site: str, reduced: Reduced) -> None:
        merges[site] = find_merge(reduced, session.chain.backend, manifest.dims.vision.prefix)

    recorder = Recorder(on_reduction=keep)
    session.generate(prompt, [opened], budget.ratio, max_new_tokens=1, recorder=recorder)
    pixels = preprocess([opened], manifest.preprocess, layout).pixel_values[0]
    return seen_picture(pixels, manifest.preprocess), make_panels(
        manifest.vision_tokens, reductions, merges, manifest.grid[1] if manifest.grid else 0
    )
