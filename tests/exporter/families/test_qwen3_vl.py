"""Qwen3-VL against what transformers itself says of positions, pixels and planes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

import tiny
from lvlm_export.check.parity import ParitySample
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.families.qwen3_vl import FAMILY, InterleavedPositions, grid_shares
from lvlm_export.families.shared.qwen_vl import patches_of
from lvlm_export.plan.cuts import cut_decoder, cut_vision
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.reduction.method import Site
from lvlm_runtime.bundle.manifest import Subgraph
from lvlm_runtime.chain.planes import PlaneFeeds, plane_order, plane_rows
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.sequence import Origins, place_tokens

SIZE = (40, 56)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen_vl(tmp_path_factory.mktemp("qwen3") / "model", "qwen3_vl")


@pytest.mark.parametrize("grid", [(2, 2), (10, 14), (46, 80), (6, 48)])
def test_the_table_is_resized_as_transformers_does(grid: tuple[int, int]) -> None:
    index, share = grid_shares(grid, 48, 2)
    wanted = get_vision_interpolation_indices_and_weights(
        torch.tensor([[1, *grid]]), 48, "bilinear", align_corners=True, spatial_merge_size=2
    )
    assert index.tolist() == wanted[0].tolist()
    np.testing.assert_allclose(share, wanted[1].numpy(), atol=1e-5)


def test_embeddings_and_planes_are_those_of_the_whole_tower(checkpoint: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager")
    pixels = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    grid = torch.tensor([[1, 10, 14]] * 2)
    parts = FAMILY.parts(model)
    with torch.no_grad():
        wanted = model.model.visual(patches_of(pixels, 4, 2), grid_thw=grid)
        hidden, planes = parts.vision_embed(pixels), []
        places = torch.from_numpy(np.indices((5, 7)).reshape(2, -1).T.copy())
        rows = parts.blocks.rows(places[None].expand(2, -1, -1))
        for index, layer in enumerate(parts.vision_layers):
            hidden = parts.blocks.attend(layer, hidden, None, rows)[0]
            hidden = parts.blocks.feed_forward(layer, hidden)
            if index in (1, 3):
                planes.append(parts.planes[len(planes)](hidden))
        features = parts.project(hidden)
    for ours, theirs in zip(
        (features, *planes), (wanted.pooler_output, *wanted.deepstack_features), strict=True
    ):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs, atol=2e-5, rtol=0)


def test_parts_of_a_head_take_turns_as_in_transformers(checkpoint: Path) -> None:
    rotary = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint).model.language_model
    positions = torch.tensor([[0, 1, 2, 2, 2, 5], [0, 1, 2, 2, 3, 5], [0, 1, 2, 3, 2, 5]])
    hidden = torch.zeros(1, 6, 48)
    wanted = rotary.rotary_emb(hidden, positions[:, None])
    ours = InterleavedPositions(rotary.rotary_emb)(hidden, positions)
    assert torch.equal(ours[0], wanted[0])
    assert torch.equal(ours[1], wanted[1])


def test_tokens_and_pixels_are_those_of_the_whole_processor(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = make_plan(opened, BuildOptions((0.5,), image_size=SIZE))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8))
    samples = [ParitySample((picture, picture), "What is this?")]
    assert check_processor(opened, plan, opened.encoder, samples) == EQUAL


def test_a_token_takes_the_row_of_its_own_place() -> None:
    """Two pictures of 12 places, 6 of them when the plane was made, 3 of these left now."""
    generator = np.random.default_rng(8)
    stood = np.stack([np.sort(generator.choice(12, 6, replace=False)) for _ in range(2)])
    left = np.stack([np.sort(generator.choice(row, 3, replace=False)) for row in stood])
    plane = generator.normal(size=(2, 6, 4))
    placed = place_tokens([2, 1, 2], np.arange(5), 5, 3)
    rows = plane_rows(Origins(stood, 12), left)
    order = plane_order(len(placed.order), placed.visual, rows, 6)
    ours = np.concatenate([np.zeros((1, 4)), plane.reshape(-1, 4)])[order]
    wanted = np.zeros((11, 4))
    for image, first in enumerate((2, 6)):
        for number, place in enumerate(left[image]):
            wanted[first + number] = plane[image, list(stood[image]).index(place)]
    assert np.array_equal(ours, wanted)


def test_a_plane_that_no_graph_gives_is_one_line() -> None:
    graphs: Any = None
    stage = Subgraph("decoder.0", "decoder.0.onnx", None, 0, 4, ("plane.1",))
    one = np.zeros((1, 1), int)
    with pytest.raises(LvlmError, match=r"decoder\.0 adds plane\.1 and no vision graph gives it"):
        PlaneFeeds(graphs).of_rows(stage, {}, 3, one, one, Recorder())


def test_planes_lie_where_their_layers_end() -> None:
    sites = [Site("vision", 1), Site("vision", 2)]
    cuts = cut_vision(5, sites, planes=(1, 2, 4))
    # Layer 1 is whole behind its MLP, with which the second subgraph starts.
    assert [cut.planes for cut in cuts] == [(0,), (1,), (2,)]
    assert cuts[0].outputs == ("hidden_out", "query", "key", "plane.0")
    decoder = cut_decoder(6, [Site("decoder", 1), Site("decoder", 4)], planes=3)
    assert [cut.inputs for cut in decoder] == [("plane.0",), ("plane.1", "plane.2"), ()]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("deepstack_visual_indexes", [1, 5], r"indexes \[1, 5\] .* layers of its 5, each once"),
        ("deepstack_visual_indexes", [1, 1], r"indexes \[1, 1\] .* each once"),
        ("num_position_embeddings", 24, "num_position_embeddings 24 of vision_config is no square"),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkpoint: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "config.json").read_text())
    content["vision_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(LvlmError, match=message):
        Checkpoint.open(tmp_path).shape(SIZE)
