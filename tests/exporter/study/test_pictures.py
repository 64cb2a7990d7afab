"""Places of a chain put back on the picture, and what is drawn from them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from command_line import typed
from helpers import build_tiny
from lvlm_export.cli.commands.visualize import run_picture
from lvlm_export.study.merging import Merge
from lvlm_export.study.panels import (
    CLEAR,
    DROPPING,
    GONE,
    GROUPED,
    MERGING,
    Panel,
    make_panels,
)
from lvlm_export.study.picture_page import draw_page
from lvlm_export.study.pictures import (
    CAPTION,
    GAP,
    MARGIN,
    MARKS,
    PANEL,
    draw_frames,
    draw_original,
    draw_panel,
    draw_sheet,
    draw_view,
    group_color,
    legend,
    save_frames,
)
from lvlm_export.study.views import Seen, make_views, panel_of
from lvlm_runtime.bundle.manifest import Reduction
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, TileLayout
from lvlm_runtime.image.preprocess import PreprocessSpec
from lvlm_runtime.image.seen import seen_picture
from lvlm_runtime.session import Session


def reduction(site: str, before: int, after: int, merges: bool = False) -> Reduction:
    return Reduction(site, before, after, "file.onnx", ("hidden",), merges)


def merge(places: list[int], joins: list[int] | None = None) -> Merge:
    return Merge(np.array(places, np.int64), None if joins is None else np.array(joins))


SITES = [reduction("vision@1", 9, 5, True), reduction("decoder@2", 5, 2)]


def test_tokens_keep_what_they_took_in_from_site_to_site() -> None:
    merges = {
        "vision@1": merge([0, 2, 4, 6, 8], [0, 0, 1, 0, 2, 1, 3, -1, 4]),
        "decoder@2": merge([1, 4], [-1, 0, -1, -1, 1]),
    }
    first, second = make_panels(9, SITES, merges)
    assert first.groups.tolist() == [0, 0, 2, 0, 4, 2, 6, -1, 8]
    assert first.looks.tolist() == [*[GROUPED] * 4, CLEAR, GROUPED, CLEAR, DROPPING, CLEAR]
    assert first.caption == "5 patches stay, 3 are merged, 1 are dropped"
    assert second.groups.tolist() == [-1, -1, 2, -1, -1, 2, -1, -1, 8]
    assert second.looks[[0, 1, 3, 4, 6]].tolist() == [DROPPING] * 5, "with all that they took in"
    assert second.looks[[2, 5, 7, 8]].tolist() == [GROUPED, GROUPED, GONE, CLEAR]
    assert second.caption == "2 patches stay, 3 are dropped"


def test_where_it_cannot_be_told_only_places_are_shown() -> None:
    merges = {"vision@1": merge([0, 2, 4, 6, 8]), "decoder@2": merge([1, 4], [-1, 0, -1, -1, 1])}
    first, second = make_panels(9, SITES, merges)
    assert first.looks.tolist() == [CLEAR, MERGING] * 4 + [CLEAR]
    assert np.flatnonzero(second.looks == CLEAR).tolist() == [2, 8]
    assert np.flatnonzero(second.looks == DROPPING).tolist() == [0, 4, 6]
    assert np.flatnonzero(second.looks == GONE).tolist() == [1, 3, 5, 7]
    assert first.caption == "5 patches stay, 4 are merged"


def test_tokens_of_no_single_patch_are_counted_and_carried() -> None:
    sites = [reduction("features@4", 4, 3, True), reduction("decoder@2", 3, 2)]
    merges = {"features@4": merge([-1, 1, 3], [0, 1, 0, 2]), "decoder@2": merge([0, 2], [0, -1, 1])}
    first, second = make_panels(4, sites, merges)
    assert first.caption == "2 patches stay and 1 of no single patch, 2 are merged"
    assert first.groups.tolist() == [4, 1, 4, 3]
    assert second.looks.tolist() == [GROUPED, DROPPING, GROUPED, CLEAR]
    assert second.groups.tolist() == [4, -1, 4, 3]


def test_a_site_where_nothing_stays_has_no_group() -> None:
    (panel,) = make_panels(4, [reduction("decoder@2", 4, 0)], {"decoder@2": merge([], [-1] * 4)})
    assert panel.caption == "0 patches stay, 4 are dropped"
    assert panel.looks.tolist() == [DROPPING] * 4


def test_missing_places_are_no_silent_empty_panel() -> None:
    with pytest.raises(AssertionError, match="decoder@2 keeps 0 places"):
        make_panels(4, [reduction("decoder@2", 4, 1)], {"decoder@2": merge([])})


def test_a_patch_has_its_tokens_colour_and_one_that_stays_is_clear() -> None:
    picture = Image.new("RGB", (32, 32), (0, 200, 0))
    looks = np.array([CLEAR, GROUPED, MERGING, GROUPED, DROPPING, GONE, CLEAR, CLEAR, CLEAR])
    groups = np.array([0, 3, -1, 3, -1, -1, 6, 7, 8])
    shown = np.asarray(draw_panel(picture, Panel("s", looks, groups, "")))
    third = PANEL // 3
    clear, grouped, merging, place, dropping, gone = (
        shown[row * third + third // 4, column * third + third // 4].astype(int)
        for row in (0, 1)
        for column in range(3)
    )
    assert clear.tolist() == [0, 200, 0]
    assert grouped.tolist() == place.tolist()
    mixed = 0.45 * np.array([0, 200, 0]) + 0.55 * np.array(group_color(3, 3))
    assert np.abs(grouped - mixed).max() <= 1
    assert merging[1] > 100, "orange over green"
    assert dropping[1] < 100 < dropping[0], "red"
    assert gone.max() < 70
    centre = shown[third + third // 2, third // 2]
    assert centre.tolist() == [255, 255, 255], "a dot where the token stands"
    assert [entry[0] for entry in legend([Panel("s", looks[:2], groups, "")])] == [
        "stays as it is",
        "merged: a colour per token, a dot at its place",
    ]


def test_near_tokens_have_unlike_colours() -> None:
    for row, column in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one, other = group_color(5 * 14 + 5, 14), group_color((5 + row) * 14 + 5 + column, 14)
        assert np.abs(np.subtract(one, other)).max() > 100


def test_the_sheet_has_a_cell_per_site_the_page_a_step_and_the_animation_a_frame() -> None:
    picture = Image.new("RGB", (32, 32), (0, 200, 0))
    sites = make_panels(
        4,
        [reduction("vision@1", 4, 3), reduction("decoder@2", 3, 1)],
        {"vision@1": merge([0, 1, 3], [0, 1, 1, 2]), "decoder@2": merge([2], [-1, -1, 0])},
    )
    seen = Seen(picture, make_views([picture], IMAGE_LAYOUT, 2, 2))
    sheet = draw_sheet(seen, sites, "heading\nWhat? — that (first token 9 ms)")
    assert sheet.size == (4 * (PANEL + MARGIN) + MARGIN, PANEL + 2 * CAPTION + 60 + MARGIN)
    page = draw_page(seen, sites, "<b>heading\nWhat? — that")
    assert "<b>" not in page
    assert "<h1>&lt;b&gt;heading</h1>\n<p>What? — that</p>" in page
    assert 'max="2"' in page
    steps = json.loads(re.search(r"const steps = (\[.*\]);", page)[1])  # type: ignore[index]
    assert [step["title"] for step in steps] == ["what the model sees", "vision@1", "decoder@2"]
    assert all(step["image"].startswith("data:image/png;base64,") for step in steps)
    stream = io.BytesIO()
    save_frames(draw_frames(seen, sites, "heading"), stream)
    assert MARKS[".gif"] in stream.getvalue()
    animation = Image.open(stream)
    assert (animation.n_frames, animation.info["loop"]) == (3, 0)  # type: ignore[attr-defined]


def test_pixels_go_back_to_the_picture() -> None:
    spec = PreprocessSpec(rescale_factor=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    pixels = (values / 255 - np.array(spec.mean)) / np.array(spec.std)
    seen = seen_picture(pixels.transpose(2, 0, 1).astype(np.float32), spec)
    assert np.abs(np.asarray(seen).astype(int) - values).max() == 0


def test_tiles_are_put_together_beside_the_whole_picture() -> None:
    colours = [(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    tiles = [Image.new("RGB", (8, 8), colour) for colour in colours]
    layout = TileLayout("single", 5, 2, 2, 16, 16)
    whole, joint = make_views(tiles, layout, 2, 2)
    assert whole.places.tolist() == [[0, 1], [2, 3]]
    assert joint.places.tolist() == [
        *([4, 5, 8, 9], [6, 7, 10, 11]),
        *([12, 13, 16, 17], [14, 15, 18, 19]),
    ]
    assert joint.picture.getpixel((12, 4)) == (0, 250, 0)
    last = make_views(tiles[:3], TileLayout("tiles", 3, 1, 2, 8, 16), 2, 2)
    assert [view.places.ravel().tolist()[0] for view in last] == [8, 0]
    groups = np.array([0, 7, *range(2, 20)])
    panel = Panel("s", np.array([CLEAR, GROUPED] + [CLEAR] * 18), groups, "")
    base, tiled = panel_of(panel, whole), panel_of(panel, joint)
    # A token that stands in another view has a colour, and no dot here.
    assert base.groups.tolist() == [0, 4 + 7, 2, 3]
    assert (base.columns, tiled.columns) == (2, 4)
    assert tiled.groups.tolist() == list(range(16))
    sheet = draw_sheet(Seen(tiles[0], (whole, joint)), [panel], "heading")
    assert sheet.width == 2 * (2 * PANEL + GAP + MARGIN) + MARGIN
    assert draw_view(panel, Seen(tiles[0], (whole, joint))).size == (2 * PANEL + GAP, PANEL)


def test_a_wide_original_keeps_its_shape() -> None:
    view = make_views([Image.new("RGB", (8, 8))], IMAGE_LAYOUT, 2, 2)
    for size, drawn in (((40, 20), (2 * PANEL, PANEL)), ((20, 40), (PANEL // 2, PANEL))):
        original = Image.new("RGB", size, (9, 9, 9))
        assert draw_original(Seen(original, view)).size == drawn
    strip = draw_original(Seen(Image.new("RGB", (400, 10), (9, 9, 9)), view))
    assert strip.size == (2 * PANEL, PANEL)
    assert strip.getpixel((5, PANEL - 1)) == (255, 255, 255)


@pytest.mark.slow
def test_packed_tiles_are_drawn_from_a_bundle(tmp_path: Path) -> None:
    """A wide picture in two by two tiles, reduced in tower and decoder by a method that merges."""
    path = tiny.onevision(tmp_path / "model")
    options = {"image_size": (100, 140), "method": "illava"}
    bundle = build_tiny(path, tmp_path / "bundle", 0.5, **options).directory
    Image.new("RGB", (140, 100), (90, 20, 20)).save(tmp_path / "wide.png")
    page = tmp_path / "a.html"
    words = ("--image", tmp_path / "wide.png", "--ratio", "0.5", "-o", page)
    result = typed("visualize", bundle, *words)
    assert result.exit_code == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert "<h1>illava at ratio 0.5: wide.png</h1>" in text
    assert "<p>What is in the picture? — " in text
    session = Session.open(bundle, device="cpu")
    seen, panels = run_picture(session, tmp_path / "wide.png", "What?", 0.5)
    tiles = session.bundle.manifest.layouts[0].tiles
    count = session.bundle.manifest.vision_tokens
    assert [view.places.size for view in seen.views] == [count, (tiles - 1) * count]
    titles = [panel.title for panel in panels]
    assert titles[titles.index("packed") + 1].startswith("decoder@")
    packed, last = panels[titles.index("packed")], panels[-1]
    part = session.bundle.budget(0.5).layouts[0]
    stay = int((packed.groups == np.arange(len(packed.groups))).sum())
    newlines = int(packed.caption.split(" and ")[1].split()[0])
    assert stay + newlines == part.tokens_in
    assert last.caption.startswith(
        f"{part.tokens_out - int(last.caption.split(' and ')[1].split()[0])} "
    )
