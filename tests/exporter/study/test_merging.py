"""Which tokens went into which, found out from reducers as a bundle has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lvlm_export.families.shared.anyres import SinglePacker
from lvlm_export.reduction import load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.reducers import DecoderReducer, PixelReducer, VisionReducer
from lvlm_export.study.merging import find_merge, find_merges, find_packing, solve
from lvlm_runtime.chain.recorder import Reduced
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.prompt.sequence import place_tokens

INSIDE = Site("vision", 3)
SIDE, WIDTH = 6, 16


class Host:
    """Values are arrays as they are."""

    def put(self, array: Any) -> Any:
        return array

    def fetch(self, value: Any) -> Any:
        return value.copy()

    def shape(self, value: Any) -> tuple[int, ...]:
        return tuple(value.shape)


class Module:
    """A reducer's own module, called as its graph."""

    def __init__(self, reducer: Any) -> None:
        self.reducer = reducer
        self.outputs = reducer.outputs

    def __call__(self, feeds: Mapping[str, Any], bound: Any = None) -> dict[str, Any]:
        given = [torch.from_numpy(feeds[name]) for name in self.reducer.inputs]
        out = self.reducer(*given)
        return {name: value.numpy() for name, value in zip(self.outputs, out, strict=True)}

    def cache_rows(self, wanted: int) -> int:
        return wanted


def reduce_with(reducer: Any, feeds: dict[str, Any]) -> Reduced:
    runner = Module(reducer)
    taken = {name: feeds[name] for name in reducer.inputs}
    return Reduced(runner, taken, runner(taken))


def inside(method: str, keep: int, prefix: int = 0, width: int = WIDTH) -> Reduced:
    """A site of the tower, two tiles."""
    draw = np.random.default_rng(keep).standard_normal
    count = SIDE**2 + prefix
    shape = ReducerShape(SIDE**2, keep, prefix, 0.5, 0)
    reducer = VisionReducer(shape, load_method(method).selector(INSIDE, shape))
    heads = (2, 2, count, 4)
    feeds = {
        "hidden": draw((2, count, width)),
        "query": draw(heads),
        "key": draw(heads),
        "sizes": np.ones((2, count)),
    }
    return reduce_with(reducer, {name: value.astype(np.float32) for name, value in feeds.items()})


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(
    ("method", "keep"),
    [("tome", 20), ("local", 18), ("local", 30), ("anchors", 7), ("checkerboard", 18)],
)
def test_a_merged_token_is_the_mean_of_those_that_went_into_it(
    method: str, keep: int, prefix: int
) -> None:
    """On more tokens than a token has numbers, so that no solution could tell."""
    reduced = inside(method, keep, prefix)
    merge = find_merge(reduced, Host(), prefix)  # type: ignore[arg-type]
    assert merge.joins is not None
    assert merge.joins.min() == 0, "no token is lost"
    hidden, out = reduced.inputs["hidden"][0], reduced.outputs["hidden_out"][0]  # type: ignore[index]
    for token, place in enumerate(merge.places.tolist()):
        assert merge.joins[place] == token
        mean = hidden[prefix:][merge.joins == token].mean(axis=0)
        np.testing.assert_allclose(out[prefix + token], mean, atol=1e-5)


def test_a_method_that_drops_joins_nothing() -> None:
    merge = find_merge(inside("random", 20), Host(), 0)  # type: ignore[arg-type]
    assert merge.joins is not None
    stays = np.flatnonzero(merge.joins >= 0)
    assert stays.tolist() == merge.places.tolist()


def test_a_choice_by_the_tokens_themselves_is_solved() -> None:
    """iLLaVA: of what leaves, the five whose products are largest go into each that takes in."""
    reduced = inside("illava", 24, width=40)
    merge = find_merge(reduced, Host(), 0)  # type: ignore[arg-type]
    assert merge.joins is not None
    hidden, out = reduced.inputs["hidden"][0], reduced.outputs["hidden_out"][0]  # type: ignore[index]
    changed = [t for t, at in enumerate(merge.places) if not np.allclose(out[t], hidden[at])]
    left = np.setdiff1d(np.arange(SIDE**2), merge.places)
    (taking,) = {int(merge.joins[at]) for at in left if merge.joins[at] >= 0}
    assert changed == [taking]
    products = hidden[left] @ hidden[merge.places[taking]]
    five = left[np.argsort(-products)[:5]]
    assert set(left[merge.joins[left] == taking].tolist()) <= set(five.tolist())


def test_what_no_solution_tells_is_not_said() -> None:
    merge = find_merge(inside("illava", 20, width=8), Host(), 0)  # type: ignore[arg-type]
    assert merge.joins is None
    assert len(merge.places) == 20
    alike = np.ones((3, 4))
    assert solve(alike, 2 * alike[:1], np.array([0]), 1e-3) is None


def test_in_the_decoder_rows_are_found_between_the_text() -> None:
    runs, text, keep = [3, 4], np.arange(7), 9
    before = place_tokens(runs, text, 7, 12)
    after = place_tokens(runs, before.text, len(before.order), keep)
    shape = ReducerShape(12, keep, 0, 0.5, 0)
    site = Site("decoder", 2)
    draw = np.random.default_rng(0).standard_normal
    rows = len(before.order)
    feeds = {
        "hidden": draw((1, rows, WIDTH)).astype(np.float32),
        "query": draw((1, 4, rows, 4)).astype(np.float32),
        "key": draw((1, 2, rows + 2, 4)).astype(np.float32),
        "position_ids": np.arange(rows)[None],
        "visual_index": before.visual,
        "order": after.order,
        "text_index": before.text,
    }
    for method in ("fastv", "illava"):
        reducer = DecoderReducer(shape, load_method(method).selector(site, shape))
        merge = find_merge(reduce_with(reducer, feeds), Host(), 0)  # type: ignore[arg-type]
        assert merge.joins is not None
        stays = np.flatnonzero(merge.joins >= 0)
        assert (len(stays) > keep) == (method == "illava")
        assert merge.joins[merge.places].tolist() == list(range(keep))


def test_a_smaller_picture_has_each_patch_where_its_middle_is() -> None:
    shape = ReducerShape(36, 9, 0, 1.0, 0)
    reducer = PixelReducer(shape, load_method("downsample").selector(Site("pixels", 0), shape))
    feeds = {"pixel_values": np.zeros((1, 3, 24, 24), np.float32)}
    merge = find_merge(reduce_with(reducer, feeds), Host(), 0)  # type: ignore[arg-type]
    assert merge.joins is not None
    assert merge.joins.reshape(6, 6)[::2, ::2].ravel().tolist() == list(range(9))
    assert np.bincount(merge.joins).tolist() == [4] * 9


@pytest.mark.parametrize("prefix", [0, 1])
def test_tiles_follow_one_another(prefix: int) -> None:
    reduced = inside("local", 18, prefix)
    both = find_merges(reduced, Host(), prefix, 2)  # type: ignore[arg-type]
    first, second = (find_merge(reduced, Host(), prefix, tile) for tile in (0, 1))  # type: ignore[arg-type]
    assert both.places.tolist() == [*first.places, *(second.places + SIDE**2)]
    assert both.joins is not None
    assert first.joins is not None
    assert second.joins is not None
    assert first.joins.tolist() != second.joins.tolist()
    assert both.joins.tolist() == [*first.joins, *(second.joins + 18)]


def packing(layout: TileLayout, side: int, most: int | None, sized: bool) -> Any:
    """What a packer of OneVision does with tokens of so few numbers that it is asked twice."""
    width = 8
    newline = torch.nn.Parameter(torch.arange(1.0, width + 1))
    packer = SinglePacker(newline, layout, side**2, most)
    packer.inputs = ("features", "sizes") if sized else ("features",)  # type: ignore[assignment]
    packer.outputs = ("visual", "sizes_out")[: 1 + sized]  # type: ignore[assignment]

    def run(feeds: Mapping[str, Any], bound: Any = None) -> dict[str, Any]:
        out = packer(*(torch.from_numpy(feeds[name]) for name in packer.inputs))
        values = out if isinstance(out, tuple) else (out,)
        return {
            name: value.detach().numpy() for name, value in zip(packer.outputs, values, strict=True)
        }

    shape = (layout.tiles, side**2, width)
    return find_packing(run, Host(), shape, "float32", sized)  # type: ignore[arg-type]


@pytest.mark.parametrize("sized", [False, True])
def test_the_packer_is_asked_where_tokens_went(sized: bool) -> None:
    """Two tiles over two, a wide picture: a row at the top and one at the bottom are padding."""
    side = 3
    found = packing(TileLayout("single", 5, 2, 2, 20, 30), side, None, sized)
    whole = list(range(9))
    joint = np.arange(9, 45).reshape(2, 2, 3, 3).transpose(0, 2, 1, 3).reshape(6, 6)
    rows = [[*row, -1] for row in joint[1:5].tolist()]
    assert found.places.tolist() == [*whole, *(each for row in rows for each in row)]
    assert (found.joins[joint[[0, 5]]] == -1).all()
    assert found.joins[joint[1, 2]] == 9 + 2


def test_a_shrunk_map_has_the_token_that_counts_most() -> None:
    found = packing(TileLayout("single", 5, 2, 2, 24, 24), 4, 1, False)
    assert len(found.places) == 16 + 4 * 5
    assert found.places[16 + 4 :: 5].tolist() == [-1] * 4
    assert sorted(set(found.places[found.places >= 0])) == sorted(found.places[found.places >= 0])
