"""The demo's tower at 128 pixels: positions, patches and what a cell is there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor

from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.mosaics.batches import Packer
from lvlm_export.demo.train.mosaics.cells import CellHeads
from lvlm_export.demo.train.mosaics.enlarge import enlarge_model, interpolate_positions
from lvlm_export.demo.train.objectives import vision_features


def test_positions_of_the_same_grid_stay() -> None:
    positions = torch.randn(196, 8)
    torch.testing.assert_close(interpolate_positions(positions, 14), positions)


def test_positions_keep_row_and_column() -> None:
    """On a ramp along the columns, a finer grid is constant in a column and rises along a row."""
    ramp = torch.arange(14.0).repeat(14)[:, None]
    finer = interpolate_positions(ramp, 16)[:, 0].reshape(16, 16)
    assert (finer.diff(dim=1) > 0).all()
    torch.testing.assert_close(finer, finer[:1].expand_as(finer))


@torch.no_grad()
def test_the_tower_takes_larger_pictures() -> None:
    model = enlarge_model(CHECKPOINT, 128)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    processor.image_processor.size = {"height": 128, "width": 128}
    batch = Packer(processor, 256).batch(0, 2, flip=False)
    assert batch.pixel_values.shape == (2, 3, 128, 128)
    features = vision_features(model, batch.pixel_values)
    assert features.shape == (2, 256, 96)
    loss, right = CellHeads(96, 16).patch_loss(features, batch)
    assert loss > 0
    assert 0 <= right <= 1


def test_cells_of_the_finer_grid() -> None:
    """Nine cells of a third of the picture each; the middle patch of each lies inside."""
    heads = CellHeads(8, 15)
    assert heads.patch_cells.reshape(15, 15)[2::5, 2::5].flatten().tolist() == list(range(9))
    torch.testing.assert_close(heads.pooling.sum(dim=1), torch.ones(9))


def test_part_of_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="130 pixels are not a multiple of the patches' 8"):
        enlarge_model(CHECKPOINT, 130)
