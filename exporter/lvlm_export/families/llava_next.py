"""LLaVA-NeXT (LLaVA-1.6): CLIP, anyres tiles with unpad and newline, Vicuna, Mistral or Llama text.

A picture is a base view and a grid of tiles, laid out as LLaVA-OneVision does it but for its shrink; a
bundle is built for one tile layout (``--image-size``) and for requests with one picture. The kept tokens of
a tile are laid out as a smaller square.
Source: https://llava-vl.github.io/blog/2024-01-30-llava-next/; transformers 5.23, ``models/llava_next``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Family, ModelShape, Parts
from lvlm_export.families.shared.anyres import SinglePacker, canvases
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
from lvlm_runtime.image import anyres
from lvlm_runtime.image.anyres import TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LlavaNext(Family):
    """CLIP and a Llama-like text model with a static tile layout."""

    summary = "LLaVA-NeXT (1.6): CLIP + Vicuna, Mistral or Llama, anyres tiles, one image"
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
        spec = replace(preprocess_spec(preprocessor), feature_side=math.isqrt(vision.tokens))
        return ModelShape(
            vision=vision,
            text=text_shape(config.text_config),
            image_token_id=config.image_token_id,
            preprocess=spec,
            layouts=(anyres.layout_for(*(image_size or (tile, tile)), canvases(config), tile),),
            square_tiles=True,
            packed=True,
            visual_tokens=lambda layout, kept: anyres.visual_tokens(layout, math.isqrt(kept), None),
            dims=model_dims(config),
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import LlavaNextForConditionalGeneration

        return LlavaNextForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        return llava_parts(model)

    def packer(self, model: Any, layout: TileLayout, kept: int) -> nn.Module:
        return SinglePacker(model.model.image_newline, layout, kept, None)

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return {
            "pixel_values": pixel_values.reshape(-1, layout.tiles, *pixel_values.shape[1:]),
            "image_sizes": torch.tensor(image_sizes),
        }


FAMILY = LlavaNext()
