"""VisPruner, ToMe, those of this project and downsampling: counts, refusals, and their numpy statements."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import numpy_methods
from lvlm_export.reduction import load_method
from lvlm_export.reduction.budget import Geometry
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.anchors import penalty, spread_places
from lvlm_export.reduction.methods.local import local_counts
from lvlm_export.reduction.methods.tome import counts_per_site
from lvlm_export.reduction.methods.visprune import removals_per_step, split_budget
from lvlm_export.reduction.reducers import VisionReducer
from lvlm_export.reduction.schedule import plan_budget
from lvlm_export.reduction.selectors import Clues, Selector
from lvlm_export.reduction.selectors.downsample import centre_places
from lvlm_runtime.bundle.placement import HandPlacement
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image import anyres

FEATURES = Site("features", 23)
PIXELS = Site("pixels", 0)
INSIDE = Site("vision", 3)


def llava(tokens: int = 576) -> Geometry:
    return Geometry(23, tokens, 32, (anyres.IMAGE_LAYOUT,), False, lambda _layout, kept: kept)


def tensor(rows: NDArray[np.float64]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def selector(method: str, site: Site, tokens: int, keep: int, prefix: int = 0) -> Selector:
    return load_method(method).selector(site, ReducerShape(tokens, keep, prefix, 0.5, 0))


def on_grid(method: str, grid: tuple[int, int], keep: int) -> Selector:
    """As ``selector``, for the first site of a tile of rows and columns of patches."""
    shape = ReducerShape(grid[0] * grid[1], keep, 0, 0.5, 0, columns=grid[1])
    return load_method(method).selector(INSIDE, shape)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("keep", [1, 2, 3, 12, 17, 39, 40])
def test_visprune_equals_the_numpy_statement(keep: int) -> None:
    tokens, noise = draw(keep, (2, 40, 6), (2, 40))
    scores = np.exp(noise)
    clues = Clues(scores=tensor(scores))
    got, places = selector("visprune", FEATURES, 40, keep)(tensor(tokens), clues)
    for image in range(2):
        expected = numpy_methods.visprune(tokens[image], scores[image], keep)
        assert places[image].tolist() == expected
        assert torch.equal(got[image], tensor(tokens)[image][expected])


def test_visprune_removes_eight_per_step() -> None:
    assert split_budget(192) == (96, 96)
    assert removals_per_step(480, 96) == (8,) * 48
    assert removals_per_step(9, 1) == (5, 2, 1), "the first set alone can lose tokens"


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("keep", [15, 16, 22, 29])
def test_tome_equals_the_numpy_statement(keep: int, prefix: int) -> None:
    tokens, keys, noise = draw(keep, (2, 30, 6), (2, 30, 4), (2, 30))
    sizes = np.ceil(np.exp(noise))
    clues = Clues(mean_keys=tensor(keys), sizes=tensor(sizes))
    got, places, merged = selector("tome", INSIDE, 30, keep, prefix)(tensor(tokens), clues)
    for image in range(2):
        args = tokens[image], keys[image], sizes[image], keep, prefix
        expected_places, expected, expected_sizes = numpy_methods.tome(*args)
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(merged[image].numpy(), expected_sizes)
        assert merged[image].sum() == sizes[image].sum(), "no patch is lost"


def test_tome_never_merges_the_cls_token() -> None:
    hidden, query, key = map(tensor, draw(1, (2, 31, 8), (2, 2, 31, 4), (2, 2, 31, 4)))
    shape = ReducerShape(30, 15, 1, 0.5, 0)
    reducer = VisionReducer(shape, load_method("tome").selector(INSIDE, shape))
    out, places, sizes = reducer(hidden, query, key, torch.full((2, 31), 3.0))
    assert torch.equal(out[:, 0], hidden[:, 0])
    assert sizes[:, 0].tolist() == [1, 1]
    assert sizes[:, 1:].sum(dim=1).tolist() == [90, 90]
    assert places.min() == 0
    assert reducer.inputs == ("hidden", "query", "key", "sizes")
    assert reducer.outputs == ("hidden_out", "places", "sizes_out")


@given(tokens=st.integers(36, 800), ratio=st.floats(0.1, 0.999))
@settings(deadline=None, max_examples=100)
def test_tome_reaches_a_tenth_and_halves_at_most(tokens: int, ratio: float) -> None:
    kept = max(1, round(ratio * tokens))
    counts = counts_per_site(tokens, kept, 4)
    assert counts[-1] == kept
    for before, after in itertools.pairwise((tokens, *counts)):
        assert -(-before // 2) <= after <= before


def test_tome_refuses_less_than_its_sites_can() -> None:
    with pytest.raises(
        UsageError, match=r"4 sites, so 576 of a tile cannot become 29; .* reach is 0.0625"
    ):
        plan_budget(0.05, load_method("tome"), llava())
    with pytest.raises(UsageError, match=r"take 30 tokens to 14 at site vision@3; .* half, 15"):
        selector("tome", INSIDE, 30, 14)


@pytest.mark.parametrize(
    ("grid", "count", "keep"),
    [
        ((6, 6), 36, 18),
        ((6, 6), 36, 25),
        ((6, 6), 36, 35),
        ((7, 7), 49, 25),
        ((6, 6), 23, 12),
        ((4, 9), 36, 20),
        ((9, 4), 30, 17),
    ],
)
def test_local_equals_the_numpy_statement(grid: tuple[int, int], count: int, keep: int) -> None:
    tokens, keys, noise = draw(keep, (2, count, 6), (2, count, 8), (2, count))
    sizes, patches = np.ceil(np.exp(noise)), grid[0] * grid[1]
    places = np.sort(np.random.default_rng(count).permutation(patches)[:count])
    shape = ReducerShape(count, keep, 0, 0.5, 0, patches, columns=grid[1])
    clues = Clues(keys=tensor(keys), sizes=tensor(sizes))
    if count < patches:
        clues = replace(clues, origins=torch.from_numpy(np.stack([places, places])))
    module = load_method("local").selector(INSIDE, shape)
    assert ("origins" in module.needs) == (count < patches)
    got, kept, merged, origins = module(tensor(tokens), clues)
    for image in range(2):
        args = tokens[image], keys[image], sizes[image], places.tolist(), keep, grid, penalty(grid)
        expected_places, expected, expected_sizes = numpy_methods.local(*args)
        assert kept[image].tolist() == expected_places
        assert origins[image].tolist() == places[expected_places].tolist()
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(merged[image].numpy(), expected_sizes)
        assert merged[image].sum() == sizes[image].sum(), "no patch is lost"


@given(tokens=st.integers(36, 800), ratio=st.floats(0.13, 0.999))
@settings(deadline=None, max_examples=100)
def test_local_reaches_an_eighth_and_halves_at_most(tokens: int, ratio: float) -> None:
    kept = max(-(-tokens // 8), round(ratio * tokens))
    counts = local_counts(tokens, kept, 3)
    assert counts[-1] == kept
    for before, after in itertools.pairwise((tokens, *counts)):
        assert -(-before // 2) <= after <= before


def test_local_has_three_sites_that_end_at_a_third() -> None:
    sites = load_method("local").sites
    assert [site.name for site in sites(12, 6, 0.33)] == ["vision@2", "vision@3", "vision@4"]
    assert [site.name for site in sites(27, 28, 0.33)] == ["vision@7", "vision@8", "vision@9"]
    assert local_counts(196, 65, 3) == (130, 98, 65)
    assert [site.name for site in sites(12, 6, 0.1)][2:] == ["vision@4", "vision@5"]
    assert local_counts(196, 20, 4) == (126, 80, 40, 20)


def test_local_refuses_what_its_sites_cannot_reach() -> None:
    with pytest.raises(UsageError, match=r"so 196 of a tile cannot become 20; .* is 0.1276"):
        local_counts(196, 20, 3)
    with pytest.raises(UsageError, match=r"local cannot take 36 tokens to 14 at site vision@3; "):
        selector("local", INSIDE, 36, 14)
    with pytest.raises(UsageError, match=r"a grid of patches, and a tile has 30; "):
        selector("local", INSIDE, 30, 15)


@pytest.mark.parametrize("grid", [(6, 6), (4, 9)])
@pytest.mark.parametrize("keep", [1, 2, 7, 18, 35, 36])
def test_anchors_equal_the_numpy_statement(keep: int, grid: tuple[int, int]) -> None:
    tokens, keys, noise = draw(keep, (2, 36, 6), (2, 36, 8), (2, 36))
    # Equal keys of two anchors must not join them.
    keys[:, 1:] = np.where(np.arange(35)[:, None] % 5 == 0, keys[:, :1], keys[:, 1:])
    sizes = np.ceil(np.exp(noise))
    clues = Clues(keys=tensor(keys), sizes=tensor(sizes))
    got, places, merged = on_grid("anchors", grid, keep)(tensor(tokens), clues)
    expected_places = spread_places(grid, keep)
    for image in range(2):
        args = tokens[image], keys[image], sizes[image], expected_places, grid[1], penalty(grid)
        expected, expected_sizes = numpy_methods.anchors(*args)
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)
        np.testing.assert_array_equal(merged[image].numpy(), expected_sizes)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), share=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=100)
def test_anchors_are_spread_evenly(rows: int, columns: int, share: float) -> None:
    keep = max(1, round(share * rows * columns))
    places = spread_places((rows, columns), keep)
    assert len(places) == keep
    assert places == sorted(set(places))
    assert 0 <= places[0] <= places[-1] < rows * columns
    counts = np.bincount(np.array(places) // columns, minlength=rows)
    assert counts.max() - counts.min() <= 1
    for row in range(rows):
        gaps = np.diff([place for place in places if place // columns == row])
        assert gaps.max(initial=1) - gaps.min(initial=columns) <= 1


def test_half_of_a_grid_is_a_checkerboard() -> None:
    places = spread_places((14, 14), 98)
    assert {(place // 14 + place % 14) % 2 for place in places} == {0}
    assert penalty((14, 14)) == 0.02
    assert penalty((28, 28)) == 0.005, (
        "the same part of the picture is four times as many squared steps"
    )


def test_anchors_refuse_tokens_that_are_no_grid() -> None:
    with pytest.raises(UsageError, match=r"grid of patches, and site vision@3 has 30; "):
        selector("anchors", INSIDE, 30, 14)


@pytest.mark.parametrize(
    ("grid", "keep"),
    [((6, 6), 18), ((6, 6), 25), ((6, 6), 35), ((7, 7), 24), ((7, 7), 25), ((5, 8), 22)],
)
def test_checkerboard_equals_the_numpy_statement(grid: tuple[int, int], keep: int) -> None:
    count = grid[0] * grid[1]
    tokens, keys = draw(keep, (2, count, 6), (2, count, 8))
    module = on_grid("checkerboard", grid, keep)
    assert (module.needs, module.gives_origins) == ({"keys"}, False)
    got, places = module(tensor(tokens), Clues(keys=tensor(keys)))
    for image in range(2):
        args = tokens[image], keys[image], keep, grid, penalty(grid)
        expected_places, expected = numpy_methods.checkerboard(*args)
        assert places[image].tolist() == expected_places
        np.testing.assert_allclose(got[image].numpy(), expected, atol=1e-5)


@given(side=st.integers(2, 40), ratio=st.floats(0.01, 1.0, exclude_max=True))
@settings(deadline=None, max_examples=100)
def test_checkerboard_halves_at_most_and_the_decoder_takes_the_rest(
    side: int, ratio: float
) -> None:
    whole = side * side
    if round(ratio * whole) < 1:
        return
    budget = plan_budget(ratio, load_method("checkerboard"), llava(whole))
    (halving,), (layout,) = budget.vision, budget.layouts
    assert halving.tokens_out == max(1, whole // 2, round(ratio * whole))
    assert layout.tokens_out == round(ratio * whole)
    assert bool(layout.decoder) == (ratio < 0.5)


def test_checkerboard_at_its_published_point() -> None:
    method = load_method("checkerboard")
    assert [site.name for site in method.sites(12, 6, 0.33)] == ["vision@4", "decoder@4"]
    assert [site.name for site in method.sites(27, 28, 0.33)] == ["vision@9", "decoder@19"]
    assert [site.name for site in method.sites(12, 6, 0.5)] == ["vision@4"]
    budget = plan_budget(0.33, method, llava(196))
    assert budget.vision[0].tokens_out == 98
    assert budget.layouts[0].decoder[0].tokens_out == 65
    assert [method.merges_at(site) for site in method.sites(12, 6, 0.33)] == [True, False]


def test_checkerboard_refuses_what_it_cannot_halve() -> None:
    with pytest.raises(UsageError, match=r"grid of patches, and site vision@3 has 30; "):
        selector("checkerboard", INSIDE, 30, 15)
    with pytest.raises(UsageError, match=r"take 49 tokens to 23 at site vision@3; .* is half, 24"):
        selector("checkerboard", INSIDE, 49, 23)
    # A share that a user gave is not moved to what the method can do.
    placed = load_method("checkerboard", HandPlacement(vision_share=0.9))
    (count,) = plan_budget(0.33, placed, llava(196)).vision
    with pytest.raises(UsageError, match="take 196 tokens to 72 at site"):
        placed.selector(count.site, ReducerShape(196, count.tokens_out, 0, 0.5, 0))


@pytest.mark.parametrize(("before", "after"), [(6, 4), (6, 2), (6, 5), (7, 3), (6, 6)])
def test_downsample_is_an_area_resize(before: int, after: int) -> None:
    patch = 4
    (pictures,) = draw(before, (2, 3, before * patch, before * patch))
    got, places = selector("downsample", PIXELS, before**2, after**2)(tensor(pictures), Clues())
    assert got.shape == (2, 3, after * patch, after * patch)
    assert places.shape == (2, after**2)
    for image, channel in itertools.product(range(2), range(3)):
        expected = numpy_methods.area_resize(pictures[image, channel], after * patch)
        np.testing.assert_allclose(got[image, channel].numpy(), expected, atol=1e-5)


def test_downsampled_tokens_stand_at_the_centre_of_what_they_show() -> None:
    assert centre_places(6, 2) == [1 * 6 + 1, 1 * 6 + 4, 4 * 6 + 1, 4 * 6 + 4]
    assert centre_places(24, 24) == list(range(576))
    assert len(set(centre_places(27, 16))) == 256


@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 289), (0.33, 196), (0.1, 64)])
def test_downsample_keeps_the_nearest_square(ratio: float, kept: int) -> None:
    budget = plan_budget(ratio, load_method("downsample"), llava())
    assert [(count.site.name, count.tokens_out) for count in budget.vision] == [("pixels@0", kept)]
    assert budget.layouts[0].achieved == kept / 576


def test_downsample_refuses_what_is_no_smaller_square() -> None:
    with pytest.raises(
        UsageError, match=r"24 x 24 tokens and ratio 0.99 keeps all of them; .* reach is 0.9184"
    ):
        plan_budget(0.99, load_method("downsample"), llava())
    with pytest.raises(UsageError, match=r"keeps a square and 10 is not one; .* are 9 and 16"):
        selector("downsample", PIXELS, 36, 10)
