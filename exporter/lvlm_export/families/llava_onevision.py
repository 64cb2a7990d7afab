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
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Family, ModelShape, Parts
from lvlm_export.families.shared.anyres import MultiPacker, SinglePacker, canvases
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.projectors import refuse_projector
from lvlm_export.families.shared.texts import text_shape
from lvlm_export.families.shared.towers import (
    EMBED_TOKENS,
    RENAMES,
    llava_parts,
    model_dims,
    vision_shape,
)
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LlavaOnevision(Family):
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
        refuse_projector(config)
        vision = vision_shape(config)
        tile = vision.image_size
        height, width = image_size or (tile, tile)
        single = anyres.layout_for(height, width, canvases(config), tile)
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
        if layout.kind == anyres.MULTI:
            return MultiPacker(newline)
        return SinglePacker(newline, layout, kept, _max_patches(model.config))

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
