"""What the vision tower learns: every patch says what lies on it and what the whole picture holds.

The readers are linear, are thrown away after training, and see features as the language model does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lvlm_export.demo.scenes import COLORS, IMAGE_SIZE, MOST_OBJECTS, PATCH, SHAPES, SIZES, UNCLEAR
from lvlm_export.demo.train.scenes.pools import PARTS, SIDE, SceneArrays
from lvlm_export.demo.train.scenes.recipe import WHOLE_PICTURE_LAYER

_IGNORED = -100
_MIDDLE_SIZE = math.log(SIZES[0] * SIZES[-1]) / 2


@dataclass(frozen=True, eq=False)
class SceneTargets:
    """Labels of B pictures.

    Attributes:
        shape: int64 ``[B, 196]``, of the patch's object; one class more is background, -100 unclear.
        color: int64 ``[B, 196]``, likewise.
        is_object: bool ``[B, 196]``.
        box: float32 ``[B, 196, 3]``: centre in -1..1 and log size of the patch's object.
        parts: float32 ``[B, 196, 16]``, how much of the patch's parts objects fill.
        mark: float32 ``[B, 196]``, 1 at the patch of each object that is nearest to its centre.
        members: float32 ``[B, 6, 196]``, mean over an object's patches.
        object_shape: int64 ``[B, 6]``, -100 where there is no object.
        present: float32 ``[B, 62]``: which shapes, colours and coloured shapes the picture has.
    """

    shape: Tensor
    color: Tensor
    is_object: Tensor
    box: Tensor
    parts: Tensor
    mark: Tensor
    members: Tensor
    object_shape: Tensor
    present: Tensor


def scene_targets(arrays: SceneArrays) -> SceneTargets:
    """The labels of some pictures."""
    owners, things = torch.from_numpy(arrays.owners).long(), torch.from_numpy(arrays.things)
    real = torch.arange(MOST_OBJECTS) < torch.from_numpy(arrays.counts)[:, None]
    is_object, unclear = owners >= 0, owners == UNCLEAR
    own = things.gather(1, owners.clamp(min=0)[..., None].expand(-1, -1, things.shape[-1]))

    def named(column: int, background: int) -> Tensor:
        names = torch.where(is_object, own[..., column].long(), background)
        return names.masked_fill(unclear, _IGNORED)

    size = own[..., 4].clamp(min=1).log() - _MIDDLE_SIZE
    half = IMAGE_SIZE / 2
    mine = owners[:, None] == torch.arange(MOST_OBJECTS)[:, None]
    shapes, colors = things[..., 0].long(), things[..., 1].long()
    return SceneTargets(
        shape=named(0, len(SHAPES)),
        color=named(1, len(COLORS)),
        is_object=is_object,
        box=torch.stack([own[..., 2] / half - 1, own[..., 3] / half - 1, 2 * size], dim=-1),
        parts=torch.from_numpy(arrays.parts).float() / 255,
        mark=_marks(things, mine, real),
        members=mine / mine.sum(dim=-1, keepdim=True).clamp(min=1),
        object_shape=shapes.masked_fill(~real, _IGNORED),
        present=torch.cat(
            [
                _present(shapes, real, len(SHAPES)),
                _present(colors, real, len(COLORS)),
                _present(shapes * len(COLORS) + colors, real, len(SHAPES) * len(COLORS)),
            ],
            dim=-1,
        ),
    )


def _present(names: Tensor, real: Tensor, n: int) -> Tensor:
    """1 for each of n names that some real object ``[B, 6]`` has: float32 ``[B, n]``."""
    return (functional.one_hot(names, n) * real[..., None]).amax(dim=1).float()


def _marks(things: Tensor, mine: Tensor, real: Tensor) -> Tensor:
    centers = patch_centers()
    away = (things[:, :, None, 2:4] - centers).square().sum(dim=-1)
    nearest = away.masked_fill(~mine, math.inf).argmin(dim=-1)
    marks = functional.one_hot(nearest, SIDE**2) * real[..., None]
    return marks.amax(dim=1).float()


def patch_centers() -> Tensor:
    """Pixels from left and top of each patch's centre, float32 ``[196, 2]``."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2) * float(PATCH) + PATCH / 2


def pixel_tensor(pixels: np.ndarray) -> Tensor:
    """Pixels uint8 ``[B, 112, 112, 3]`` as the checkpoint's processor gives them: -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class PatchReaders(nn.Module):
    """Read from every patch what lies on it.

    Args:
        width: Of the features, C.
    """

    places: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.box, self.place = nn.Linear(width, 3), nn.Linear(width, 2)
        self.parts, self.mark = nn.Linear(width, PARTS**2), nn.Linear(width, 1)
        self.register_buffer("places", patch_centers() / (IMAGE_SIZE / 2) - 1, persistent=False)

    def loss(self, features: Tensor, targets: SceneTargets) -> tuple[Tensor, dict[str, float]]:
        """Sum of the losses (a scalar) and what to log.

        Args:
            features: The tower's output ``[B, 196, C]``.
            targets: The labels.
        """
        x = self.norm(features)
        shape, color, mark = self.shape(x), self.color(x), self.mark(x)[..., 0]
        named = _cross_entropy(shape, targets.shape) + _cross_entropy(color, targets.color)
        on_object = targets.is_object
        box = functional.smooth_l1_loss(self.box(x)[on_object], targets.box[on_object], beta=0.2)
        place = functional.mse_loss(self.place(x), self.places.expand(len(x), -1, -1))
        # Edges are what shapes are made of.
        bce = functional.binary_cross_entropy_with_logits
        parts = bce(self.parts(x), targets.parts)
        marks = bce(mark, targets.mark)
        # An object's mean as well: from single patches alone shapes are learned late.
        pooled = self.shape(targets.members @ x)
        loss = named + box + place + parts + 4 * marks
        loss = loss + _cross_entropy(pooled, targets.object_shape)
        with torch.no_grad():
            objects = targets.object_shape >= 0
            facts = {
                "shape": _share(shape.argmax(-1) == targets.shape, on_object),
                "color": _share(color.argmax(-1) == targets.color, on_object),
                "background": _share(shape.argmax(-1) == len(SHAPES), targets.shape == len(SHAPES)),
                "object_shape": _share(pooled.argmax(-1) == targets.object_shape, objects),
                "marked": _share(mark > 0, targets.mark > 0),
                "box": box.item(),
            }
        return loss, facts


class WholePictureReader(nn.Module):
    """Reads from every patch which shapes, colours and coloured shapes the picture has.

    Args:
        width: Of the features, C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self._sections = [len(SHAPES), len(COLORS), len(SHAPES) * len(COLORS)]
        self.present = nn.Linear(width, sum(self._sections))

    def loss(self, features: Tensor, targets: SceneTargets) -> tuple[Tensor, float]:
        """The loss (a scalar) and the share of coloured shapes found, over all patches."""
        found = torch.split(self.present(self.norm(features)), self._sections, dim=-1)
        wanted = targets.present[:, None].expand(-1, features.shape[1], -1)
        parts = torch.split(wanted, self._sections, dim=-1)
        shapes, colors, pairs = (
            functional.binary_cross_entropy_with_logits(logits, right)
            for logits, right in zip(found, parts, strict=True)
        )
        with torch.no_grad():
            recall = _share(found[-1] > 0, parts[-1] > 0)
        # The weights bring the three to a similar size at the start.
        return 2 * shapes + 2 * colors + 8 * pairs, recall


class TowerReaders(nn.Module):
    """All readers of the tower: of each patch at the end, of the whole picture twice.

    Args:
        width: Of the features, C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = PatchReaders(width)
        self.early, self.late = WholePictureReader(width), WholePictureReader(width)

    def loss(self, tower: Any, arrays: SceneArrays) -> tuple[Tensor, dict[str, float]]:
        """The loss of some pictures (a scalar) and what to log of it."""
        targets = scene_targets(arrays)
        # In float32: without matrix units of the processor, bfloat16 takes longer backwards.
        early, late = tower_features(tower, pixel_tensor(arrays.pixels))
        local, facts = self.patches.loss(late, targets)
        first, first_recall = self.early.loss(early, targets)
        last, last_recall = self.late.loss(late, targets)
        facts |= {"local": local.item(), "whole_early": first.item(), "whole_late": last.item()}
        facts |= {"recall_early": first_recall, "recall_late": last_recall}
        return local + first + last, facts


def tower_features(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[B, 196, C]`` after WHOLE_PICTURE_LAYER layers and after the last."""
    hidden = tower.embeddings(pixels)
    early = hidden
    for number, layer in enumerate(tower.encoder.layers, start=1):
        hidden = layer(hidden, attention_mask=None)
        if number == WHOLE_PICTURE_LAYER:
            early = hidden
    return early, hidden


def _cross_entropy(logits: Tensor, names: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), names.flatten())


def _share(right: Tensor, among: Tensor) -> float:
    return right[among].float().mean().item()
