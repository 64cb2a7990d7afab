"""The stages that train projector and language model on the frozen tower's features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_export.demo.questions import draw_questions, questions_about
from lvlm_export.demo.train.objectives import answer_loss
from lvlm_export.demo.train.scenes.pools import SIDE, ScenePool
from lvlm_export.demo.train.scenes.recipe import SceneStage
from lvlm_export.demo.train.scenes.text import ScenePacker, scene_processor
from lvlm_export.demo.train.scenes.tower import pixel_tensor, tower_features
from lvlm_profiles.files import whole_file

_BATCH = 64


class FeatureStore:
    """The tower's features of a pool's pictures, computed once and kept as files.

    Args:
        tower: The frozen tower.
        pool: Whose pictures.
        directory: Features of other weights lie in another folder of it.
    """

    def __init__(self, tower: Any, pool: ScenePool, directory: Path) -> None:
        self._tower, self._pool = tower, pool
        weights = hashlib.sha256()
        for value in tower.state_dict().values():
            weights.update(value.numpy().tobytes())
        self._directory = directory / weights.hexdigest()[:16]

    def take(self, chunk: int, rows: np.ndarray) -> Tensor:
        """Features of some pictures of a chunk, float32 ``[B, 196, C]``."""
        path = self._directory / f"{self._pool.name}-{chunk:02d}.npy"
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            features = self._compute(self._pool.chunk(chunk).pixels)
            with whole_file(path) as stream:
                np.save(stream, features)
        return torch.from_numpy(np.load(path, mmap_mode="r")[rows].astype(np.float32))

    @torch.no_grad()
    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        parts = [
            tower_features(self._tower, pixel_tensor(pixels[at : at + _BATCH]))[1].half().numpy()
            for at in range(0, len(pixels), _BATCH)
        ]
        return np.concatenate(parts)


class TextObjective:
    """Projector and language model, and the loss of each step.

    Args:
        model: With the weights to begin with and the trained tower.
        pool: Its pictures.
        stage: Which stage.
        seed: Of the pictures' order and of the questions.
        features: Where the tower's features are kept.
    """

    def __init__(
        self, model: Any, pool: ScenePool, stage: SceneStage, seed: int, features: Path
    ) -> None:
        model.requires_grad_(False)
        self.modules: dict[str, tuple[nn.Module, float]] = {
            "projector": (model.model.multi_modal_projector, 1.0),
            "language_model": (model.model.language_model, 1.0),
            "lm_head": (model.lm_head, 1.0),
        }
        for module, _ in self.modules.values():
            module.requires_grad_(True)
        self.model, self._pool, self._stage, self._seed = model, pool, stage, seed
        self._features = FeatureStore(model.model.vision_tower, pool, features)
        self._packer = ScenePacker(scene_processor(), SIDE**2)

    def losses(self, start: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Loss of each step from ``start`` on and what to log of it."""
        stage, kinds = self._stage, dict(self._stage.kinds)
        steps = self._pool.batches(self._seed, stage.batch_size, stage.objects, start)
        for step, (chunk, rows) in zip(count(start), steps):
            arrays = self._pool.chunk(chunk).take(rows)
            rng = np.random.default_rng([self._seed, 1, step])
            pictures = [questions_about(arrays.things_of(row)) for row in range(len(rows))]
            batch = self._packer.pack([draw_questions(each, kinds, rng) for each in pictures])
            features = self._features.take(chunk, rows)
            loss, right = answer_loss(self.model, features, batch, per_question=True)
            yield loss, {kind: share_of_kind(right, batch.kinds, kind) for kind in kinds}


def share_of_kind(right: Tensor, kinds: tuple[str, ...], kind: str) -> float:
    """Share of right answers among a kind's questions; NaN where there is none."""
    return right[[each == kind for each in kinds]].float().mean().item()
