"""The LLaVA of transformers with a trained projector in place of its own.

It loads, trains and generates as any other model of that library; the question that QueCC reads is
one more argument, ``query_ids``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel

from lvlm_export.families.shared.projectors import make_projector, projector_shape


class ProjectedLlavaModel(LlavaModel):  # type: ignore[misc]
    """``LlavaModel`` whose projector takes features of several layers, and may take a question."""

    def __init__(self, config: Any) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = make_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def text_query(self, query_ids: Tensor) -> Tensor:
        """Last hidden state ``[B, 1, D]`` of the language model on questions ``[B, Q]`` alone."""
        hidden: Tensor = self.language_model(input_ids=query_ids, use_cache=False)[0]
        return hidden[:, -1:]

    def get_image_features(
        self, pixel_values: Tensor, query_ids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The tower's output with the visual tokens of each picture as ``pooler_output``."""
        shape = projector_shape(self.config)
        assert shape is not None
        out = self.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        first = int(self.config.vision_feature_select_strategy == "default")
        features = torch.cat([out.hidden_states[level] for level in shape.levels], dim=-1)
        query = self.text_query(query_ids) if shape.reads_text and query_ids is not None else None
        out.pooler_output = list(self.multi_modal_projector(features[:, first:], query))
        return out

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        query_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if pixel_values is not None:
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values, query_ids)}
        for name in ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes"):
            kwargs.pop(name, None)
        return super().forward(input_ids=input_ids, mm_encoder_outputs=mm_encoder_outputs, **kwargs)


class ProjectedLlava(LlavaForConditionalGeneration):  # type: ignore[misc]
    """``LlavaForConditionalGeneration`` with a trained projector."""

    def __init__(self, config: Any) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = ProjectedLlavaModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        query_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As the parent's; ``query_ids [B, Q]`` is the question alone, if the projector needs it."""
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            query_ids=query_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
