"""Places of a chain put back on the picture, and what is drawn from them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from lvlm_export.cli.commands.visualize import seen_picture
from lvlm_export.study.pictures import (
    CAPTION,
    LEAVES_HERE,
    LEFT_BEFORE,
    MARGIN,
    PANEL,
    STAYS,
    Panel,
    draw_page,
    draw_panel,
    draw_sheet,
    make_panels,
)
from lvlm_runtime.bundle.manifest import Reduction
from lvlm_runtime.image.preprocess import PreprocessSpec


def reduction(site: str, before: int, after: int, merges: bool = False) -> Reduction:
    return Reduction(site, before, after, "file.onnx", ("hidden",), merges)


def test_places_compose_from_site_to_site() -> None:
    sites = [reduction("vision@1", 9, 5, True), reduction("decoder@2", 5, 2)]
    places = {"vision@1": np.array([0, 2, 4, 6, 8]), "decoder@2": np.array([1, 4])}
    first, second = make_panels(9, sites, places)
    assert first.states.tolist() == [STAYS, LEAVES_HERE] * 4 + [STAYS]
    assert np.flatnonzero(second.states == STAYS).tolist() == [2, 8]
    assert np.flatnonzero(second.states == LEAVES_HERE).tolist() == [0, 4, 6]
    assert np.flatnonzero(second.states == LEFT_BEFORE).tolist() == [1, 3, 5, 7]
    assert first.caption == "5 patches stay, 4 are merged"
    assert second.caption == "2 patches stay, 3 are dropped"


def test_tokens_of_no_single_patch_are_counted_and_carried() -> None:
    sites = [reduction("features@4", 4, 3, True), reduction("decoder@2", 3, 2)]
    places = {"features@4": np.array([-1, 1, 3]), "decoder@2": np.array([0, 2])}
    first, second = make_panels(4, sites, places)
    assert first.caption == "2 patches stay and 1 of no single patch, 2 are merged"
    assert np.flatnonzero(second.states == STAYS).tolist() == [3]
    assert second.extra == 1


def test_a_site_where_nothing_stays_needs_no_places() -> None:
    (panel,) = make_panels(4, [reduction("decoder@2", 4, 0)], {})
    assert panel.caption == "0 patches stay, 4 are dropped"


def test_missing_places_are_no_silent_empty_panel() -> None:
    with pytest.raises(AssertionError, match="decoder@2 keeps 0 places"):
        make_panels(4, [reduction("decoder@2", 4, 1)], {})


@pytest.mark.parametrize("merges", [True, False])
def test_a_patch_that_leaves_is_tinted_and_one_that_stays_is_not(merges: bool) -> None:
    picture = Image.new("RGB", (32, 32), (0, 200, 0))
    shown = np.asarray(
        draw_panel(
            picture, Panel("s", np.array([STAYS, LEAVES_HERE, LEFT_BEFORE, STAYS]), 0, merges)
        )
    )
    middle = PANEL // 4
    kept, leaving, left = shown[middle, middle], shown[middle, -middle], shown[-middle, middle]
    assert kept.tolist() == [0, 200, 0]
    assert leaving[0] > 120
    assert (leaving[1] > 100) == merges
    assert left.max() < 70


def test_the_sheet_has_a_cell_per_site_and_the_page_a_step() -> None:
    picture = Image.new("RGB", (32, 32), (0, 200, 0))
    sites = make_panels(
        4,
        [reduction("vision@1", 4, 3), reduction("decoder@2", 3, 1)],
        {"vision@1": np.array([0, 1, 3]), "decoder@2": np.array([2])},
    )
    sheet = draw_sheet(picture, sites, "heading")
    assert sheet.size == (3 * (PANEL + MARGIN) + MARGIN, PANEL + 3 * CAPTION + MARGIN)
    page = draw_page(picture, sites, "<b>heading")
    assert "<b>" not in page
    assert 'max="2"' in page
    steps = json.loads(re.search(r"const steps = (\[.*\]);", page)[1])  # type: ignore[index]
    assert [step["title"] for step in steps] == ["what the model sees", "vision@1", "decoder@2"]
    assert all(step["image"].startswith("data:image/png;base64,") for step in steps)


def test_pixels_go_back_to_the_picture() -> None:
    spec = PreprocessSpec(rescale_factor=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 3))
    pixels = (values / 255 - np.array(spec.mean)) / np.array(spec.std)
    seen = seen_picture(pixels.transpose(2, 0, 1).astype(np.float32), spec)
    assert np.abs(np.asarray(seen).astype(int) - values).max() == 0
