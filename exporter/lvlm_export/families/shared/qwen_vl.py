"""What the Qwen-VL families share: a tower without a grid of its own, a merger, three positions.

A picture keeps its shape: both sides become multiples of a token's edge (``smart_resize``), and a
bundle is built for one size (``--image-size``); a picture of another shape is letterboxed to it. A
token is a group of 2 x 2 patches that the merger joins: patches come group by group, so the merger
takes what a reducer leaves as it is. Queries and keys turn with a patch's row and column, which
travel with the group; where layers attend inside windows, these places decide who sees whom, so no
reordering is needed and a token that stays keeps its window.

Source: arXiv:2409.12191, arXiv:2502.13923; transformers 5.23, ``models/qwen2_vl`` and
``models/qwen2_5_vl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Family, ModelShape, Parts, TextShape, VisionShape
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.texts import text_dims, text_shape
from lvlm_export.families.shared.towers import EMBED_TOKENS
from lvlm_profiles.shapes.dims import ModelDims, VisionDims
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE, TileLayout
from lvlm_runtime.image.preprocess import PreprocessSpec
from lvlm_runtime.image.smart import smart_resize

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Time, height and width.
POSITIONS = 3
# A picture's edge in tokens where no size is given: that of a 448 pixel picture.
EDGE = 16
# What the processor's file says beside what all processors have, and its defaults.
_OWN = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": None,
    "max_pixels": None,
    "size": None,
}
_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}


class QwenVl(Family):
    """A picture of any shape, a token for every group of patches that the merger joins."""

    summary = ""
    renames = (
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
    )
    embed_tokens = EMBED_TOKENS
    # Parts of half a head by time, height and width where the configuration does not say.
    sections: tuple[int, ...] | None = None

    def tower(self, config: PretrainedConfig) -> tuple[int, int, int]:
        """Width, inner size of an MLP of two linear maps, and edge of the windows in groups."""
        raise NotImplementedError

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        vision = config.vision_config
        _check_tower(vision)
        merge = vision.spatial_merge_size
        factor = vision.patch_size * merge
        spec = _preprocess(preprocessor, vision, image_size or (EDGE * factor, EDGE * factor))
        assert spec.height is not None
        assert spec.width is not None
        assert spec.grid is not None
        groups = spec.grid[0] * spec.grid[1]
        width, mlp, window = self.tower(config)
        text = replace(_text_shape(config, self.sections), position_rows=POSITIONS)
        tower = VisionShape(
            layers=vision.depth,
            tokens=groups,
            prefix=0,
            hidden_size=width,
            heads=vision.num_heads,
            image_size=spec.height,
            scale=(width // vision.num_heads) ** -0.5,
            group=merge * merge,
            grid=spec.grid,
            window=window,
            whole_layers=tuple(getattr(vision, "fullatt_block_indexes", ())),
            image_width=spec.width,
        )
        joined = merge * merge * width
        dims = ModelDims(
            vision=VisionDims(
                layers=vision.depth,
                width=width,
                mlp=mlp,
                heads=vision.num_heads,
                patch=vision.patch_size,
                tokens=groups * merge * merge,
                prefix=0,
                # Two frames.
                channels=2 * vision.in_channels,
                window=(window * merge) ** 2,
                whole_layers=tuple(getattr(vision, "fullatt_block_indexes", ())) if window else (),
            ),
            projector=((joined, joined), (joined, text.hidden_size)),
            text=text_dims(config),
        )
        return ModelShape(
            vision=tower,
            text=text,
            image_token_id=config.image_token_id,
            preprocess=spec,
            layouts=(TileLayout(IMAGE, 1, 0, 0, spec.height, spec.width),),
            square_tiles=False,
            packed=False,
            visual_tokens=lambda _layout, kept: kept,
            dims=dims,
        )

    def parts(self, model: nn.Module) -> Parts:
        whole: Any = model
        tower, language = whole.model.visual, whole.model.language_model
        embed = PatchEmbed(tower)
        return Parts(
            vision_embed=embed,
            embed_any_size=embed,
            vision_layers=tower.blocks,
            project=GroupMerger(tower.merger),
            text_layers=language.layers,
            rotary=ThreePositions(language.rotary_emb),
            norm=language.norm,
            lm_head=whole.lm_head,
            blocks=QwenBlocks(tower),
        )

    def processor_pixels(self, config: PretrainedConfig, tiles: Tensor) -> Tensor:
        vision = config.vision_config
        return patches_of(tiles, vision.patch_size, vision.spatial_merge_size)

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        config: Any = model.config
        patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
        rows, cols = (edge // patch for edge in pixel_values.shape[2:])
        grid = torch.tensor([[1, rows, cols]] * len(pixel_values))
        given = {"pixel_values": patches_of(pixel_values, patch, merge), "image_grid_thw": grid}
        if input_ids is not None:
            given["mm_token_type_ids"] = (input_ids == config.image_token_id).to(torch.int32)
        return given


def patches_of(pixel_values: Tensor, patch: int, merge: int) -> Tensor:
    """Patches ``[B*T, 3*2*P*P]`` of pictures ``[B, 3, H, W]``, group by group.

    The patch embedding takes two frames at once; a picture is both of them.
    """
    images, channels, height, width = pixel_values.shape
    step = patch * merge
    cells = pixel_values.reshape(
        images, channels, height // step, merge, patch, width // step, merge, patch
    ).permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = cells.reshape(-1, channels, 1, patch, patch).expand(-1, -1, 2, -1, -1)
    return frames.reshape(-1, channels * 2 * patch * patch)


class PatchEmbed(nn.Module):
    """``pixel_values [B, 3, H, W] -> [B, T, C]``, patches group by group."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.patch_embed = tower.patch_embed
        self.merge = int(tower.spatial_merge_size)

    def forward(self, pixel_values: Tensor, any_size: bool = False) -> Tensor:
        assert not any_size, "no method that reduces pictures fits"
        patches = patches_of(pixel_values, self.patch_embed.patch_size, self.merge)
        embedded: Tensor = self.patch_embed(patches)
        return embedded.reshape(pixel_values.shape[0], -1, embedded.shape[-1])


class GroupMerger(nn.Module):
    """Groups of patches to tokens: ``[B, N*G, C] -> [B, N, D]``."""

    def __init__(self, merger: nn.Module) -> None:
        super().__init__()
        self.merger = merger

    def forward(self, hidden: Tensor) -> Tensor:
        merged: Tensor = self.merger(hidden)
        return merged.reshape(hidden.shape[0], -1, merged.shape[-1])


class ThreePositions(nn.Module):
    """``(hidden, position_ids) -> (cos, sin)``, parts of a head by time, height and width.

    Positions are ``[3, S]``, or ``[3, B, S]`` where several requests have their own.
    """

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if position_ids.dim() == 2:
            position_ids = position_ids.unsqueeze(1)
        turned: tuple[Tensor, Tensor] = self.rotary(hidden, position_ids)
        return turned


class QwenBlocks(nn.Module):
    """How the tower's blocks run: see ``VisionBlocks``. Queries and keys are those after RoPE."""

    slots: Tensor

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.rotary, self.merge = tower.rotary_pos_emb, int(tower.spatial_merge_size)
        slots = [[row, col] for row in range(self.merge) for col in range(self.merge)]
        self.register_buffer("slots", torch.tensor(slots), persistent=False)

    def rows(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, T, D]`` of the patches of groups at ``grid [B, N, 2]``."""
        places = grid.unsqueeze(2) * self.merge + self.slots
        cos, sin = self.rotary(grid, places.reshape(-1, 2))
        images, width = grid.shape[0], cos.shape[-1]
        return cos.reshape(images, -1, width), sin.reshape(images, -1, width)

    def attend(
        self,
        layer: Any,
        hidden: Tensor,
        bias: Tensor | None,
        rows: tuple[Tensor, Tensor],
        windows: Any = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

        attention = layer.attn
        joined = attention.qkv(layer.norm1(hidden))
        images, count, _ = hidden.shape
        heads = joined.reshape(images, count, 3, attention.num_heads, -1)
        query, key, value = heads.permute(2, 0, 1, 3, 4).unbind(0)
        query, key = qwen.apply_rotary_pos_emb_vision(query, key, *rows)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        asked = query, key, value
        if windows is not None:
            asked = windows.split(query), windows.split(key), windows.split(value)
            bias = windows.bias(images, hidden.dtype)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, qwen.eager_attention_forward
        )
        out, weights = function(attention, *asked, bias, scaling=attention.scaling)
        if windows is not None:
            out = windows.join(out, images)
        attended: Tensor = hidden + attention.proj(out.reshape(images, count, -1))
        return attended, weights, query, key

    def feed_forward(self, layer: Any, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + layer.mlp(layer.norm2(hidden))
        return result


def _check_tower(vision: Any) -> None:
    """LvlmError for what the patch embedding or the heads cannot be."""
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    if vision.temporal_patch_size != 2 or vision.in_channels != 3 or width % vision.num_heads:
        raise LvlmError(
            f"vision_config has temporal_patch_size {vision.temporal_patch_size}, in_channels"
            f" {vision.in_channels} and {vision.num_heads} heads for a width of {width}; supported"
            " are 2, 3 and heads that divide the width: correct config.json"
        )


def _text_shape(config: PretrainedConfig, default: tuple[int, ...] | None) -> TextShape:
    text = text_shape(config.text_config)
    sections = (config.text_config.rope_parameters or {}).get("mrope_section", default)
    if not isinstance(sections, list | tuple) or 2 * sum(sections) != text.head_dim:
        raise LvlmError(
            f"mrope_section of text_config is {sections!r}, parts of half a head of {text.head_dim}"
            " are needed; correct config.json"
        )
    return text


def _preprocess(
    preprocessor: Mapping[str, Any], vision: Any, image_size: tuple[int, int]
) -> PreprocessSpec:
    """The processor's steps for pictures of one size, which are given the size that it gives it."""
    config = preprocessor.get("image_processor", preprocessor)
    own = {key: config.get(key, default) for key, default in _OWN.items()}
    wanted = vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
    given = own["patch_size"], own["temporal_patch_size"], own["merge_size"]
    if given != wanted:
        raise LvlmError(
            f"the image processor has patch_size, temporal_patch_size and merge_size {given} and"
            f" vision_config {wanted}; correct preprocessor_config.json"
        )
    size = {**_SIZE, **(own["size"] or {})}
    low, high = (
        own["min_pixels"] or size["shortest_edge"],
        own["max_pixels"] or size["longest_edge"],
    )
    factor = vision.patch_size * vision.spatial_merge_size
    if not all(isinstance(each, int) and each >= 1 for each in (low, high)):
        raise LvlmError(
            f"the image processor's fewest and most pixels are {low!r} and {high!r}, whole numbers"
            " from 1 up are needed; correct size in preprocessor_config.json"
        )
    height, width = smart_resize(*image_size, factor, low, high)
    rest = {key: value for key, value in config.items() if key not in _OWN}
    spec = preprocess_spec({**rest, "size": {"height": height, "width": width}})
    if spec.resize is None or spec.center_crop is not None:
        raise LvlmError(
            "the image processor has do_resize off or do_center_crop on, and this model's pictures"
            " are resized and not cropped; correct preprocessor_config.json"
        )
    return replace(spec, factor=factor, min_pixels=low, max_pixels=high)
