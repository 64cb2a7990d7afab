"""PaliGemma: SigLIP, one linear map, Gemma; the prompt sees the whole of itself.

A picture's tokens stand before the question, and attention over both is not causal: a token of the
picture sees the question. So what is chosen in the decoder rests on tokens that have read it. The
answer is causal. Rows of the token table are multiplied by the root of their width, the picture's are not.
Rotary positions count from 1 in transformers and from 0 here, which attention cannot tell: it knows
differences alone.

The published checkpoints have no chat template; the processor writes pictures, a start token, the text and
a line feed, which is the template here. They are made for tasks (``caption en``, ``detect cat``) and one
question each. PaliGemma 2 (Gemma 2, whose attention caps scores) is not supported.
Source: arXiv:2407.07726; transformers 5.23, ``models/paligemma`` and ``models/gemma``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Family, ModelShape, Parts, refuse_image_size
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.texts import text_dims, text_shape
from lvlm_export.families.shared.towers import (
    EMBED_TOKENS,
    RENAMES,
    VisionEmbed,
    tower_shape,
    vision_dims,
)
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.bundle.manifest import PREFIX
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# As ``PaliGemmaProcessor.prepare_inputs_layout`` writes it.
TEMPLATE = (
    "{% if messages | length > 1 %}"
    "{{ raise_exception('this model takes one question and no conversation') }}{% endif %}"
    "{% for part in messages[0]['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{{ bos_token }}"
    "{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '\n' }}"
)


class PaliGemma(Family):
    """One view per image, its tokens straight into the prompt, which is not causal."""

    summary = "PaliGemma: SigLIP + Gemma, a prompt that sees the whole of itself, one view an image"
    renames = RENAMES
    embed_tokens = EMBED_TOKENS
    template = TEMPLATE

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        refuse_image_size(image_size, "paligemma")
        if config.text_config.model_type != "gemma":
            raise LvlmError(
                f"text model {config.text_config.model_type!r} is not supported in paligemma, gemma"
                " is: take a checkpoint of PaliGemma 1"
            )
        vision = tower_shape(config.vision_config, (config.vision_config.num_hidden_layers,))
        if vision.prefix:
            raise LvlmError(
                f"vision tower {config.vision_config.model_type!r} is not supported in paligemma;"
                " known: siglip_vision_model"
            )
        text = text_shape(config.text_config)
        if config.text_config.use_bidirectional_attention is not True:
            raise LvlmError(
                "use_bidirectional_attention of text_config is"
                f" {config.text_config.use_bidirectional_attention!r} and PaliGemma's prompt sees the"
                " whole of itself; take it out of config.json"
            )
        return ModelShape(
            vision=vision,
            text=replace(text, attention=PREFIX),
            image_token_id=config.image_token_id,
            preprocess=preprocess_spec(preprocessor),
            layouts=(IMAGE_LAYOUT,),
            square_tiles=False,
            packed=False,
            visual_tokens=lambda _layout, kept: kept,
            dims=ModelDims(
                vision=vision_dims(config.vision_config, vision),
                projector=((vision.hidden_size, text.hidden_size),),
                text=text_dims(config),
            ),
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import PaliGemmaForConditionalGeneration

        return PaliGemmaForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        whole: Any = model
        inner = whole.model
        embed = VisionEmbed(inner.vision_tower)
        return Parts(
            vision_embed=embed,
            embed_any_size=embed.interpolated,
            vision_layers=inner.vision_tower.encoder.layers,
            project=NormProject(inner),
            text_layers=inner.language_model.layers,
            rotary=inner.language_model.rotary_emb,
            norm=inner.language_model.norm,
            lm_head=whole.lm_head,
        )

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert input_ids is not None
        # 0 is the prompt, and what is not causal.
        return {"pixel_values": pixel_values, "token_type_ids": torch.zeros_like(input_ids)}


class NormProject(nn.Module):
    """The tower's last norm and the projector: ``[B, N, C] -> [B, N, D]``."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.norm = inner.vision_tower.post_layernorm
        self.projector = inner.multi_modal_projector

    def forward(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.projector(self.norm(hidden))
        return features


FAMILY = PaliGemma()
