"""``lvlm-export visualize``: what becomes of patches at each site. Never imports torch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import click

from lvlm_export.cli.console import say
from lvlm_export.cli.options import bundle_argument, device_options, ratio_option
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_export.study.merging import Merge
    from lvlm_export.study.panels import Panel
    from lvlm_export.study.views import Seen
    from lvlm_runtime.chain.recorder import Reduced
    from lvlm_runtime.session import Session

SUFFIXES = (".png", ".html", ".gif")
# Stages whose reducers take a row of tokens for every tile.
TOWER = ("pixels", "vision", "features")
# What becomes of the tiles' tokens where they are packed into an image's.
PACKED = "packed"
ANSWER_TOKENS, ANSWER_LETTERS = 64, 100


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
    seen, sites = run_picture(session, image, prompt, ratio)
    manifest = session.bundle.manifest
    kept = session.bundle.budget(ratio).ratio
    answer = session.generate(prompt, image, kept, max_new_tokens=ANSWER_TOKENS)
    said = shorten(answer.text, ANSWER_LETTERS, placeholder=" …")
    heading = (
        f"{manifest.method} at ratio {kept:g}: {image.name}\n"
        f"{shorten(prompt, ANSWER_LETTERS, placeholder=' …')} — {said} (first token"
        f" {answer.time_to_first_token_ms:.0f} ms)"
    )
    for path in output:
        refuse_other(path, MARKS[path.suffix.lower()])
        if path.suffix.lower() == ".html":
            write_whole(path, draw_page(seen, sites, heading))
        else:
            with whole_file(path) as stream:
                if path.suffix.lower() == ".gif":
                    save_frames(draw_frames(seen, sites, heading), stream)
                else:
                    save_sheet(draw_sheet(seen, sites, heading), stream)
        say(f"wrote {path}")
    say(f"answer: {answer.text.strip()}")
    for panel in sites:
        say(f"{panel.title}: {panel.caption}")


def run_picture(
    session: Session, image: Path, prompt: str, ratio: float | None
) -> tuple[Seen, list[Panel]]:
    """A picture as the model sees it, and its sites at a ratio.

    Raises:
        UsageError: Nothing is reduced at this ratio.
    """
    from lvlm_export.study.merging import find_merges, find_packing
    from lvlm_export.study.panels import make_panels
    from lvlm_export.study.views import Seen, make_views
    from lvlm_runtime.bundle.manifest import Reduction
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
    steps = route(manifest, budget, part)
    reductions = [step.reduction for step in steps if step.reduction is not None]
    if not reductions:
        raise UsageError(f"nothing is reduced at ratio {budget.ratio:g}; give a smaller --ratio")
    backend = session.chain.backend
    merges: dict[str, Merge] = {}
    in_tower = sum(each.site.partition("@")[0] in TOWER for each in reductions)
    for index, each in enumerate(reductions[:in_tower]):
        before, after = layout.tiles * each.tokens_in, layout.tiles * each.tokens_out
        reductions[index] = replace(each, tokens_in=before, tokens_out=after)

    def keep(site: str, reduced: Reduced) -> None:
        tiles = layout.tiles if site.partition("@")[0] in TOWER else 1
        merges[site] = find_merges(reduced, backend, manifest.dims.vision.prefix, tiles)

    recorder = Recorder(on_reduction=keep)
    session.generate(prompt, [opened], budget.ratio, max_new_tokens=1, recorder=recorder)
    if part.packer is not None:
        # Its step has the tokens of one tile; what it gives are an image's.
        kept = next(step.tokens_in for step in steps if step.kind == "packer")
        features = (layout.tiles, kept, manifest.dims.text.width)
        runner, dtype = session.chain.runner(part.packer), str(session.chain.graphs.dtype)
        merges[PACKED] = find_packing(runner, backend, features, dtype, manifest.sized)
        tokens = len(merges[PACKED].places)
        packing = Reduction(PACKED, layout.tiles * kept, tokens, part.packer, (), False)
        reductions.insert(in_tower, packing)
    tiles = preprocess([opened], manifest.preprocess, layout).pixel_values
    rows, columns = manifest.grid or (math.isqrt(manifest.vision_tokens),) * 2
    pictures = [seen_picture(pixels, manifest.preprocess) for pixels in tiles]
    seen = Seen(opened, make_views(pictures, layout, rows, columns))
    patches = layout.tiles * manifest.vision_tokens
    return seen, make_panels(patches, reductions, merges)
