"""LLaVA-OneVision: SigLIP and Qwen2, anyres tiles with unpad and newline, several images.

A single picture is a base view and a grid of tiles; several pictures are one padded view each.
Graphs are static, so a bundle is built for one tile layout (``--image-size``). iLLaVA leaves the
kept tokens of a tile in raster order but no longer on the tower's grid; as in the authors' code
they are laid out as a smaller square, so the kept count must be a square (shared METHODS §2.1).
Source: arXiv:2408.03326; transformers ``models/llava_onevision``.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import ModelShape, Parts
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.projectors import projector_kind
from lvlm_export.families.shared.towers import (
    EMBED_TOKENS,
    RENAMES,
    llava_parts,
    model_dims,
    text_shape,
    vision_shape,
)
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class TilePacker(nn.Module, ABC):
    """Projected tiles as an image's tokens, and their sizes the same way.

    ``features [B, K, D]``, and where the decoder counts the patches that a token stands for their
    ``sizes [B, K]`` too. A newline is one token; where the map is shrunk, a size is interpolated as
    the features are, so that tokens of which nothing was merged stay of size 1.
    """

    def __init__(self, newline: nn.Parameter) -> None:
        super().__init__()
        self.newline = newline

    @abstractmethod
    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        """Tokens in their order; ``newline [D]``."""

    def forward(
        self, features: Tensor, sizes: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        packed = self.pack(features, self.newline)
        if sizes is None:
            return packed
        rows = self.pack(sizes.unsqueeze(-1), torch.ones_like(self.newline[:1]))
        return packed, rows.squeeze(-1)


class SinglePacker(TilePacker):
    """Base view, then the tiles' joint map without its padding, a newline after every row.

    ``features [tiles, K, D] -> [1, V, D]``.
    """

    def __init__(
        self, newline: nn.Parameter, layout: TileLayout, kept: int, max_patches: int
    ) -> None:
        super().__init__(newline)
        self.layout = layout
        self.side = math.isqrt(kept)
        self.max_patches = max_patches

    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        side, width = self.side, features.shape[-1]
        rows, cols, row0, col0 = anyres.unpadded_grid(self.layout, side)
        grid = (self.layout.grid_rows, self.layout.grid_cols)
        tiles = features[1:].reshape(*grid, side, side, width)
        joint = tiles.permute(0, 2, 1, 3, 4).reshape(grid[0] * side, grid[1] * side, width)
        joint = joint.narrow(0, row0, rows).narrow(1, col0, cols)
        shrunk = anyres.max_patches_shape(rows, cols, side, self.max_patches)
        if shrunk != (rows, cols):
            channels_first = joint.permute(2, 0, 1).unsqueeze(0)
            resized = nn.functional.interpolate(channels_first, shrunk, mode="bilinear")
            joint = resized[0].permute(1, 2, 0)
        ends = newline.expand(joint.shape[0], 1, width)
        lines = torch.cat((joint, ends), dim=1).reshape(-1, width)
        return torch.cat((features[0], lines), dim=0).unsqueeze(0)


class MultiPacker(TilePacker):
    """One view per picture and a newline after it: ``features [n, K, D] -> [n, K+1, D]``."""

    def pack(self, features: Tensor, newline: Tensor) -> Tensor:
        ends = newline.expand(features.shape[0], 1, features.shape[-1])
        return torch.cat((features, ends), dim=1)


class LlavaOnevision:
    """SigLIP + Qwen2 with a static tile layout."""

    summary = "LLaVA-OneVision: SigLIP + Qwen2, anyres tiles, several images"
    renames = RENAMES
    embed_tokens = EMBED_TOKENS

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        kind = projector_kind(config)
        if kind is not None:
            raise LvlmError(f"projector {kind} is not supported with tiles; its layout is llava's")
        vision = vision_shape(config)
        tile = vision.image_size
        height, width = image_size or (tile, tile)
        single = anyres.layout_for(height, width, _pinpoints(config), tile)
        max_patches = _max_patches(config)
        return ModelShape(
            vision=vision,
            text=text_shape(config.text_config),
            image_token_id=config.image_token_id,
            preprocess=replace(
                preprocess_spec(preprocessor), feature_side=math.isqrt(vision.tokens)
            ),
            layouts=(single, anyres.MULTI_LAYOUT),
            square_tiles=True,
            packed=True,
            visual_tokens=lambda layout, kept: anyres.visual_tokens(
                layout, math.isqrt(kept), max_patches
            ),
            dims=model_dims(config),
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import LlavaOnevisionForConditionalGeneration

        return LlavaOnevisionForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        return llava_parts(model)

    def packer(self, model: Any, layout: TileLayout, kept: int) -> nn.Module:
        newline = model.model.image_newline
        if layout.name == anyres.MULTI:
            return MultiPacker(newline)
        return SinglePacker(newline, layout, kept, _max_patches(model.config))

    def processor_pixels(self, config: PretrainedConfig, tiles: Tensor) -> Tensor:
        return tiles

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        images = len(image_sizes)
        return {
            "pixel_values": pixel_values.reshape(images, layout.tiles, *pixel_values.shape[1:]),
            "image_sizes": torch.tensor(image_sizes),
            "batch_num_images": torch.tensor([images]),
        }


def _pinpoints(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Canvases (height, width) in pixels, whole tiles each; LvlmError for anything else."""
    tile, pairs = config.vision_config.image_size, config.image_grid_pinpoints
    for pair in pairs:
        edges = pair if isinstance(pair, list | tuple) and len(pair) == 2 else ()
        if not edges or not all(type(edge) is int and 0 < edge <= 64 * tile for edge in edges):
            raise LvlmError(
                f"image_grid_pinpoints of config.json has {pair!r}, [height, width] in pixels is"
                f" needed, at most 64 tiles of {tile} each way"
            )
    if not pairs:
        raise LvlmError("image_grid_pinpoints of config.json is empty; give [height, width] pairs")
    return [(height, width) for height, width in pairs]


def _max_patches(config: PretrainedConfig) -> int:
    """N of ``vision_aspect_ratio = "anyres_max_N"``; transformers takes no other value either.

    Raises:
        LvlmError: Another value.
    """
    found = re.fullmatch(r"anyres_max_([1-9][0-9]{0,3})", str(config.vision_aspect_ratio))
    if found is None:
        raise LvlmError(
            f"vision_aspect_ratio {config.vision_aspect_ratio!r} is not supported, anyres_max_N is"
            " (anyres_max_9); correct config.json"
        )
    return int(found[1])


FAMILY = LlavaOnevision()
