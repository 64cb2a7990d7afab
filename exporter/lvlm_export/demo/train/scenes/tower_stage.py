"""The stages that train the vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_export.demo.train.scenes.pools import ScenePool
from lvlm_export.demo.train.scenes.recipe import SceneStage
from lvlm_export.demo.train.scenes.tower import TowerReaders

# Readers of normed features: at the tower's rate their weights need hundreds of steps to grow.
_READERS_RATE = 5.0


class TowerObjective:
    """The tower and its readers, and the loss of each step.

    Args:
        tower: With the weights to begin with.
        pool: Its pictures.
        stage: Which stage.
        seed: Of the readers' first weights and of the pictures' order.
    """

    def __init__(self, tower: Any, pool: ScenePool, stage: SceneStage, seed: int) -> None:
        torch.manual_seed(seed)
        self._tower, self._readers = tower, TowerReaders(tower.config.hidden_size)
        self._pool, self._stage, self._seed = pool, stage, seed
        self.modules: dict[str, tuple[nn.Module, float]] = {
            "tower": (tower, 1.0),
            "readers": (self._readers, _READERS_RATE),
        }

    def losses(self, start: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Loss of each step from ``start`` on and what to log of it."""
        stage = self._stage
        steps = self._pool.batches(self._seed, stage.batch_size, stage.objects, start)
        for chunk, rows in steps:
            yield self._readers.loss(self._tower, self._pool.chunk(chunk).take(rows))
