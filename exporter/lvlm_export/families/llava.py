"""LLaVA-1.5 layout: CLIP or SigLIP tower, MLP projector, Llama, Vicuna, Mistral or Qwen2 text.

Source: arXiv:2310.03744; transformers ``models/llava``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_export.families import ModelShape, Parts
from lvlm_export.families.towers import RENAMES, llava_parts, text_shape, vision_shape
from lvlm_export.image_config import preprocess_spec
from lvlm_runtime.anyres import IMAGE_LAYOUT, TileLayout
from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig


class Llava:
    """One view per image, its tokens straight into the prompt."""

    summary = "LLaVA-1.5 layout: CLIP or SigLIP, MLP projector, Llama/Vicuna/Mistral/Qwen2"
    renames = RENAMES

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        if image_size is not None:
            raise UsageError("--image-size is for families with tiles; llava resizes every picture")
        return ModelShape(
            vision=vision_shape(config),
            text=text_shape(config.text_config),
            image_token_id=config.image_token_id,
            preprocess=preprocess_spec(preprocessor),
            layouts=(IMAGE_LAYOUT,),
            square_tiles=False,
            packed=False,
            visual_tokens=lambda _layout, kept: kept,
        )

    def parts(self, model: nn.Module) -> Parts:
        return llava_parts(model)

    def packer(self, model: nn.Module, layout: TileLayout, kept: int) -> None:
        return None

    def generate_inputs(
        self, pixel_values: Tensor, layout: TileLayout, image_sizes: list[tuple[int, int]]
    ) -> dict[str, Tensor]:
        return {"pixel_values": pixel_values}


FAMILY = Llava()
