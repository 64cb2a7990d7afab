"""LLaVA-1.5 layout: CLIP or SigLIP tower, MLP projector, Llama, Vicuna, Mistral or Qwen2 text.

A configuration that names ``quecc`` or ``tokenpacker`` has that trained projector instead.

Source: arXiv:2310.03744; transformers ``models/llava``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lvlm_export.families import Family, ModelShape, Parts, ProjectorShape, refuse_image_size
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.projectors import patch_maps, projector_kind, projector_shape
from lvlm_export.families.shared.texts import text_shape
from lvlm_export.families.shared.towers import (
    EMBED_TOKENS,
    RENAMES,
    llava_parts,
    model_dims,
    vision_shape,
)
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, TileLayout

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig


class Llava(Family):
    """One view per image, its tokens straight into the prompt."""

    summary = (
        "LLaVA-1.5 layout: CLIP or SigLIP, MLP, QueCC or TokenPacker, Llama/Vicuna/Mistral/Qwen2"
    )
    renames = RENAMES
    embed_tokens = EMBED_TOKENS

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        refuse_image_size(image_size, "llava")
        projector = projector_shape(config)
        return ModelShape(
            vision=vision_shape(config),
            text=text_shape(config.text_config),
            image_token_id=config.image_token_id,
            preprocess=preprocess_spec(preprocessor),
            layouts=(IMAGE_LAYOUT,),
            square_tiles=False,
            packed=False,
            visual_tokens=_counter(projector),
            dims=_dims(config, projector),
            projector=projector,
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        if projector_kind(config) is None:
            from transformers import LlavaForConditionalGeneration

            return LlavaForConditionalGeneration
        from lvlm_export.families.shared.projected_llava import ProjectedLlava

        return ProjectedLlava

    def parts(self, model: nn.Module) -> Parts:
        return llava_parts(model)

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        question = {} if query_ids is None else {"query_ids": query_ids}
        return {"pixel_values": pixel_values, **question}


def _dims(config: PretrainedConfig, projector: ProjectorShape | None) -> ModelDims:
    """What the cost model counts with."""
    dims = model_dims(config)
    if projector is None:
        return dims
    return replace(dims, projector=patch_maps(projector, dims.vision.width))


def _counter(projector: ProjectorShape | None) -> Callable[[TileLayout, int], int]:
    """Tokens that the decoder sees: the patches that are kept, or what the projector gives."""
    if projector is None:
        return lambda _layout, kept: kept
    tokens = projector.tokens
    return lambda _layout, _kept: tokens


FAMILY = Llava()
