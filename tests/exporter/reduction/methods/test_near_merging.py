"""``local``, ``anchors`` and ``checkerboard`` on every kind of model: what works and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tiny
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan
from lvlm_export.reduction import load_method
from lvlm_export.reduction.method import ReducerShape, Site
from lvlm_export.reduction.methods.anchors import penalty
from lvlm_export.reduction.selectors import Clues
from lvlm_export.reduction.selectors.anchors import JoinAnchors
from lvlm_runtime.bundle.placement import HandBudget, HandPlacement
from lvlm_runtime.errors import UsageError
from lvlm_runtime.session import Session

NEAR = ("local", "anchors", "checkerboard")
TILES = (100, 140)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("near")
    return {
        "cls": tiny.llava(directory / "cls"),
        "plain": tiny.llava(directory / "plain", tower="siglip", text="qwen2"),
        "tiles": tiny.onevision(directory / "tiles"),
        "projector": tiny.projected(directory / "projector", "quecc", 4),
    }


def plan_for(path: Path, method: str, ratio: float = 0.33, **options: object) -> Plan:
    return make_plan(Checkpoint.open(path), BuildOptions((ratio,), method=method, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", NEAR)
def test_a_cls_token_is_beside_the_grid(method: str, paths: dict[str, Path]) -> None:
    """Counts are of patches, with a CLS token or without."""
    with_cls, plain = (plan_for(paths[name], method) for name in ("cls", "plain"))
    assert (with_cls.shape.vision.prefix, plain.shape.vision.prefix) == (1, 0)
    counts = [
        [(count.tokens_in, count.tokens_out) for count in plan.budgets[0].vision]
        for plan in (with_cls, plain)
    ]
    assert counts[0] == counts[1]
    assert counts[0][-1][1] == (18 if method == "checkerboard" else 12)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.33, 0.1])
@pytest.mark.parametrize("method", NEAR)
def test_tiles_that_are_packed_keep_a_square(
    method: str, ratio: float, paths: dict[str, Path]
) -> None:
    plan = plan_for(paths["tiles"], method, ratio, image_size=TILES)
    kept = plan.budgets[0].vision[-1].tokens_out
    assert math.isqrt(kept) ** 2 == kept
    assert kept >= (18 if method == "checkerboard" else 1)
    single, several = plan.budgets[0].layouts
    for part in (single, several):
        if part.decoder:
            assert part.tokens_out == round(ratio * part.tokens_full)
    assert several.layout == "multi"


@pytest.mark.parametrize("method", NEAR)
def test_a_count_that_is_no_square_does_not_go_into_a_packer(
    method: str, paths: dict[str, Path]
) -> None:
    plan = plan_for(paths["tiles"], method, 0.5, image_size=TILES)
    keep = {count.site.name: float(count.tokens_out) for count in plan.budgets[0].vision}
    last = list(keep)[-1]
    placement = HandPlacement(budgets=(HandBudget(0.5, {**keep, last: 20.0}),))
    line = rf"site {last} keeps 20 tokens of a tile, and this model packs its tiles as squares"
    with pytest.raises(UsageError, match=line):
        plan_for(paths["tiles"], method, 0.5, image_size=TILES, placement=placement)


@pytest.mark.parametrize("method", NEAR)
def test_a_trained_projector_needs_every_patch(method: str, paths: dict[str, Path]) -> None:
    line = rf"method {method} acts at vision@\d, before the model's quecc projector, which needs"
    with pytest.raises(UsageError, match=line):
        plan_for(paths["projector"], method)


@pytest.mark.parametrize("method", NEAR)
def test_patches_that_are_no_grid_are_refused(method: str) -> None:
    with pytest.raises(UsageError, match=rf"method {method} .* grid of patches, and .* 30"):
        load_method(method).selector(Site("vision", 3), ReducerShape(30, 15, 0, 0.5, 0))


@pytest.mark.parametrize("method", ["anchors", "checkerboard"])
def test_a_second_site_has_no_grid_left(method: str, paths: dict[str, Path]) -> None:
    plan = plan_for(paths["cls"], method, placement=HandPlacement(sites=("vision@1", "vision@3")))
    second = plan.budgets[0].vision[1]
    shape = ReducerShape(second.tokens_in, second.tokens_out, 1, 0.5, 0, 36)
    with pytest.raises(UsageError, match=r"vision@3 .* place it where nothing has left yet"):
        plan.method.selector(second.site, shape)


def test_a_picture_on_twice_the_grid_is_merged_alike() -> None:
    """The penalty is of the same part of the picture: where keys repeat, tokens go to the same places."""
    side = 6
    torch.manual_seed(0)
    keys = torch.randn(1, side * side, 8)
    blocks = torch.arange(2 * side) // 2
    fine = keys[:, (blocks[:, None] * side + blocks[None, :]).ravel()]

    def joins(keys: torch.Tensor, side: int, places: list[int], penalty: float) -> torch.Tensor:
        """For every token the place that it joins."""
        clues = Clues(keys=keys, sizes=torch.ones(1, side * side))
        merged = JoinAnchors((side, side), places, penalty)(torch.eye(side * side)[None], clues)[0][
            0
        ]
        return merged.argmax(dim=0)

    def corner(place: int) -> int:
        """The first of the four places that a place becomes."""
        return 2 * (place // side) * 2 * side + 2 * (place % side)

    coarse = [row * side + column for row in (1, 3, 5) for column in (0, 2, 4)]
    places, corners = [corner(at) for at in coarse], [corner(at) for at in range(side * side)]
    expected = joins(keys, side, coarse, penalty((side, side)))
    assert (
        joins(fine, 2 * side, places, penalty((2 * side, 2 * side)))[corners].tolist()
        == expected.tolist()
    )
    unscaled = joins(fine, 2 * side, places, penalty((side, side)))[corners]
    assert unscaled.tolist() != expected.tolist(), "four times as much parts what belongs together"


@pytest.mark.slow
@pytest.mark.parametrize("method", NEAR)
@pytest.mark.parametrize("dialect", ["opset24", "decomposed"])
def test_tiles_and_several_pictures_equal_pytorch(
    method: str, dialect: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    options = {"method": method, "image_size": TILES, "dialect": dialect}
    result = build_tiny(paths["tiles"], tmp_path / "bundle", 0.33, **options)
    plan = plan_for(paths["tiles"], **options)  # type: ignore[arg-type]
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    assert {len(sample.images) for sample in samples} == {1, 2}
    session = Session.open(result.directory, device="cpu")
    report = verify(session, Checkpoint.open(paths["tiles"]), plan, samples, 8, lambda _step: None)
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
