"""Places of a chain put back on the picture, and what is drawn from them."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

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
    MARGIN,
    MARKS,
    PANEL,
    draw_frames,
    draw_panel,
    draw_sheet,
    group_color,
    legend,
    save_frames,
)
from lvlm_runtime.bundle.manifest import Reduction
from lvlm_runtime.image.preprocess import PreprocessSpec
from lvlm_runtime.image.seen import seen_picture


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
    sheet = draw_sheet(picture, sites, "heading")
    assert sheet.size == (3 * (PANEL + MARGIN) + MARGIN, PANEL + 3 * CAPTION + MARGIN)
    page = draw_page(picture, sites, "<b>heading")
    assert "<b>" not in page
    assert 'max="2"' in page
    steps = json.loads(re.search(r"const steps = (\[.*\]);", page)[1])  # type: ignore[index]
    assert [step["title"] for step in steps] == ["what the model sees", "vision@1", "decoder@2"]
    assert all(step["image"].startswith("data:image/png;base64,") for step in steps)
    stream = io.BytesIO()
    save_frames(draw_frames(picture, sites, "heading"), stream)
    assert MARKS[".gif"] in stream.getvalue()
    animation = Image.open(stream)
    assert (animation.n_frames, animation.info["loop"]) == (3, 0)  # type: ignore[attr-defined]


def test_pixels_go_back_to_the_picture() -> None:
    spec = PreprocessSpec(rescale_factor=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    pixels = (values / 255 - np.array(spec.mean)) / np.array(spec.std)
    seen = seen_picture(pixels.transpose(2, 0, 1).astype(np.float32), spec)
    assert np.abs(np.asarray(seen).astype(int) - values).max() == 0
