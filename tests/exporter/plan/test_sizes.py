"""Picture sizes of a bundle: what is typed, and the layouts that follow."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from command_line import typed
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.plan.sizes import ASPECTS, picture_sizes, usual_sizes
from lvlm_runtime.errors import UsageError


def test_the_usual_sizes_have_their_aspect_ratios_and_a_longer_edge_of_two_tiles() -> None:
    for (height, width), (wide, high) in zip(usual_sizes(384), ASPECTS, strict=True):
        assert max(height, width) == 768
        assert abs(width * high - height * wide) <= max(wide, high)


def test_sizes_count_once_and_auto_stands_for_several() -> None:
    assert picture_sizes([(5, 6), (5, 6), (6, 5)], 0) == [(5, 6), (6, 5)]
    assert picture_sizes(["auto", (768, 768)], 384) == list(usual_sizes(384))
    assert picture_sizes([(768, 768), "auto"], 384) == list(usual_sizes(384))


def test_a_size_with_the_graphs_of_another_adds_none(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.onevision(tmp_path / "model"))
    options = BuildOptions((0.5,), image_size=(100, 140), more_sizes=((200, 280), (140, 100)))
    names = [each.name for each in make_plan(checkpoint, options).shape.layouts]
    assert names == ["single", "single-100x140", "multi"]


def test_several_sizes_are_for_families_with_tiles(tmp_path: Path) -> None:
    llava = tiny.llava(tmp_path / "llava")
    result = typed("build", "--model", llava, "--ratio", "0.5", "--image-size", "auto")
    assert result.exit_code == 2
    assert "--image-size is for families with tiles; llava resizes every picture" in result.stderr
    qwen = Checkpoint.open(tiny.qwen_vl(tmp_path / "qwen"))
    with pytest.raises(UsageError, match="several --image-size are for families that cut a pictur"):
        make_plan(qwen, BuildOptions((0.5,), image_size=(40, 56), more_sizes=((56, 40),)))
