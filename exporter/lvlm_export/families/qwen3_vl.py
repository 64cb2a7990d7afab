"""Qwen3-VL: a learned grid of positions beside RoPE in the tower, DeepStack, Qwen3 with M-RoPE.

The tower adds a table of positions, resized to the picture, before its first layer. Behind some of its
layers a merger of their own makes features that the first decoder layers add to the visual tokens, one
plane each (DeepStack); a token that stays keeps the row of its own place in every plane. In the
language model the parts of a head that turn with time, height and width stand one by one behind each
other and not in three blocks. What all Qwen-VL share is in ``families/shared/qwen_vl.py``; checkpoints
of Cosmos-Reason2 are of this family.

Source: arXiv:2511.21631, arXiv:2406.04334; transformers 5.23, ``models/qwen3_vl``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvlm_export.families import ModelShape, Parts
from lvlm_export.families.shared.qwen_vl import GroupMerger, PatchEmbed, QwenVl
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Qwen3Vl(QwenVl):
    """See ``QwenVl``."""

    summary = "Qwen3-VL, Cosmos-Reason2: tower with a learned grid and 2-D RoPE, DeepStack, Qwen3"
    # What the model takes where its configuration does not say.
    sections = (24, 20, 20)

    def tower(self, config: PretrainedConfig) -> tuple[int, int, int]:
        vision = config.vision_config
        return vision.hidden_size, vision.intermediate_size, 0

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        shape = super().shape(config, preprocessor, image_size)
        planes = tuple(layer + 1 for layer in tapped_layers(config))
        side = math.isqrt(config.vision_config.num_position_embeddings)
        if side**2 != config.vision_config.num_position_embeddings:
            raise LvlmError(
                f"num_position_embeddings {config.vision_config.num_position_embeddings} of"
                " vision_config is no square, and its table is one of positions; correct config.json"
            )
        dims = replace(shape.dims, vision=replace(shape.dims.vision, planes=planes))
        return replace(shape, vision=replace(shape.vision, planes=planes), dims=dims)

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        whole: Any = model
        tower, parts = whole.model.visual, super().parts(model)
        listed = list(tower.deepstack_visual_indexes)
        mergers = [
            GroupMerger(tower.deepstack_merger_list[listed.index(layer)])
            for layer in tapped_layers(whole.config)
        ]
        embed = PlacedPatchEmbed(tower)
        return replace(
            parts,
            vision_embed=embed,
            embed_any_size=embed,
            rotary=InterleavedPositions(whole.model.language_model.rotary_emb),
            planes=tuple(mergers),
        )


def tapped_layers(config: PretrainedConfig) -> list[int]:
    """Vision layers behind which a plane is made, in the order in which decoder layers add them.

    Raises:
        LvlmError: One is not the tower's, stands twice, or there are more than decoder layers.
    """
    listed, depth = list(config.vision_config.deepstack_visual_indexes), config.vision_config.depth
    most = config.text_config.num_hidden_layers
    inside = all(0 <= layer < depth for layer in listed)
    if not inside or len(set(listed)) < len(listed) or len(listed) > most:
        raise LvlmError(
            f"deepstack_visual_indexes {listed} of vision_config are to be layers of its {depth}, each"
            f" once, and no more than the {most} decoder layers that add them; correct config.json"
        )
    return sorted(listed)


class PlacedPatchEmbed(PatchEmbed):
    """``pixel_values [B, 3, H, W] -> [B, T, C]``, positions added, patches group by group."""

    def __init__(self, tower: Any) -> None:
        super().__init__(tower)
        self.pos_embed = tower.pos_embed
        self.side = int(tower.num_grid_per_side)

    def forward(self, pixel_values: Tensor, any_size: bool = False) -> Tensor:
        embedded = super().forward(pixel_values, any_size)
        patch = self.patch_embed.patch_size
        height, width = (int(edge) // patch for edge in pixel_values.shape[2:])
        index, share = grid_shares((height, width), self.side, self.merge)
        corners = self.pos_embed(torch.from_numpy(index))
        placed = (corners * torch.from_numpy(share)[..., None]).sum(1)
        result: Tensor = embedded + placed.to(embedded.dtype)
        return result


def grid_shares(
    grid: tuple[int, int], side: int, merge: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A square table resized to a picture's patches, corners on corners, bilinear.

    Args:
        grid: Rows and columns of the picture's patches.
        side: Rows of the table, and its columns.
        merge: Edge of a group of patches; they come group by group.

    Returns:
        Entries of the table ``[T, 4]`` and their shares ``[T, 4]``.
    """
    axes = []
    for edge in grid:
        at = np.arange(edge, dtype=np.float32) * np.float32(side - 1) / np.float32(max(edge - 1, 1))
        low = np.floor(at)
        far = (at - low).astype(np.float32)
        near = np.stack((low, np.minimum(low + 1, side - 1)), axis=1).astype(np.int64)
        axes.append((near, np.stack((1 - far, far), axis=1)))
    rows, columns = (np.arange(edge).reshape(-1, merge) for edge in grid)
    # [group row, group column, row in group, column in group] -> one behind the other.
    row = np.broadcast_to(rows[:, None, :, None], (len(rows), len(columns), merge, merge)).ravel()
    column = np.broadcast_to(columns[None, :, None, :], (len(rows), len(columns), merge, merge))
    (near_rows, row_shares), (near_columns, column_shares) = axes
    column = column.ravel()
    index = near_rows[row][:, :, None] * side + near_columns[column][:, None]
    share = row_shares[row][:, :, None] * column_shares[column][:, None]
    return index.reshape(-1, 4), share.reshape(-1, 4)


class InterleavedPositions(nn.Module):
    """``(hidden, position_ids) -> (cos, sin)``; time, height and width take turns in a head.

    Positions are ``[3, S]``, or ``[3, B, S]`` where several requests have their own.

    The model writes height and width over time's angles; here each angle takes its own position.
    """

    axes: Tensor

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary = rotary
        axes = torch.zeros(len(rotary.inv_freq), dtype=torch.int64)
        for axis in (1, 2):
            axes[axis : 3 * rotary.mrope_section[axis] : 3] = axis
        self.register_buffer("axes", axes, persistent=False)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        places = position_ids.index_select(0, self.axes).movedim(0, -1)
        half = places.float() * self.rotary.inv_freq.float()
        angles = torch.cat((half, half), dim=-1)
        if position_ids.dim() == 2:
            angles = angles[None]
        factor = self.rotary.attention_scaling
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return cos.to(hidden.dtype), sin.to(hidden.dtype)


FAMILY = Qwen3Vl()
