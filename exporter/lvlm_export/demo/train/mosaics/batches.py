"""Training batches of mosaics: packed rows, pixels, and what each cell shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from lvlm_export.demo.questions import draw_questions
from lvlm_export.demo.train.mosaics.mosaic import Mosaic, make_mosaic
from lvlm_export.demo.train.mosaics.questions import (
    MosaicQuestion,
    listing_question,
    training_questions_about,
)
from lvlm_export.demo.train.mosaics.tiles import COLORS, SHAPES, Split
from lvlm_export.demo.train.rows import PackedRows, RowPacker

QUESTIONS_PER_KIND: dict[str, int] = {"color": 2, "shape": 1, "count": 2, "place": 2, "yes_no": 2}
"""How many questions of each kind one training picture has, beside its listing."""


@dataclass(frozen=True, eq=False)
class Batch(PackedRows):
    """One training batch of B mosaics.

    Attributes:
        pixel_values: float32 ``[B, 3, S, S]``, as the checkpoint's processor gives it (S is 112).
        cell_shapes: int64 ``[B, 9]``, index into SHAPES; the last class is a blank cell.
        cell_colors: int64 ``[B, 9]``, index into COLORS; the last class is a blank cell.
    """

    pixel_values: Tensor
    cell_shapes: Tensor
    cell_colors: Tensor


class Packer(RowPacker):
    """Turns mosaics and questions into batches with one processor's tokens."""

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        super().__init__(processor, image_tokens)
        self._image_processor = processor.image_processor

    def batch(
        self,
        first_seed: int,
        size: int,
        split: Split = "train",
        *,
        flip: bool,
        per_kind: Mapping[str, int] = QUESTIONS_PER_KIND,
    ) -> Batch:
        """Make the batch of the pictures with seeds first_seed ... first_seed + size - 1."""
        seeds = range(first_seed, first_seed + size)
        mosaics = [make_mosaic(seed, split, flip=flip) for seed in seeds]
        rows = self.rows(
            [
                [listing_question(mosaic), *drawn_questions(mosaic, seed, per_kind)]
                for mosaic, seed in zip(mosaics, seeds, strict=True)
            ]
        )
        shapes, colors = _cell_labels(mosaics)
        return Batch(
            **vars(rows),
            pixel_values=pixel_values(mosaics, self._image_processor),
            cell_shapes=shapes,
            cell_colors=colors,
        )


def drawn_questions(mosaic: Mosaic, seed: int, per_kind: Mapping[str, int]) -> list[MosaicQuestion]:
    """``per_kind`` questions of each kind, as far as the mosaic allows any."""
    rng = np.random.default_rng([seed, len(mosaic.filled)])
    return draw_questions(training_questions_about(mosaic), per_kind, rng)


def pixel_values(mosaics: list[Mosaic], image_processor: Any) -> Tensor:
    """Normalized pixels, float32 ``[B, 3, S, S]`` in -1..1; S is the processor's picture size."""
    pictures = [Image.fromarray(mosaic.pixels) for mosaic in mosaics]
    pixels: Tensor = image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels


def _cell_labels(mosaics: list[Mosaic]) -> tuple[Tensor, Tensor]:
    shapes = [
        [len(SHAPES) if cell is None else SHAPES.index(cell.shape) for cell in mosaic.cells]
        for mosaic in mosaics
    ]
    colors = [
        [len(COLORS) if cell is None else COLORS.index(cell.color) for cell in mosaic.cells]
        for mosaic in mosaics
    ]
    return torch.tensor(shapes), torch.tensor(colors)
