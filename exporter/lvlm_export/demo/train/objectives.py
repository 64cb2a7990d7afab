"""What every training minimizes in the end: answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from lvlm_export.demo.train.rows import PackedRows


def vision_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Output ``[B, 196, 96]`` of the last vision layer, which ``vision_feature_layer=-1`` is."""
    tower = model.model.vision_tower
    features: Tensor = tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state
    return features


def answer_loss(
    model: Any, features: Tensor, batch: PackedRows, *, per_question: bool
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the answers, and which are right.

    An answer is right here when every token of it, EOS included, is the most likely one after the
    right tokens before it, which is the same as greedy decoding giving that answer.

    Args:
        model: The whole model; its tower is not run.
        features: Vision features ``[B, N, C]``.
        batch: The packed questions, with N visual tokens a row.
        per_question: Every question counts the same, not every token. Listings are half of all
            answer tokens; they should lead at first and not later.

    Returns:
        A scalar, and bool ``[questions]``.
    """
    answered = batch.labels >= 0
    labels, question = batch.labels[answered], batch.question_index[answered]
    logits = model.lm_head(_hidden_states(model, features, batch)[answered]).float()
    losses = functional.cross_entropy(logits, labels, reduction="none")
    wrong = torch.bincount(question, weights=(logits.argmax(-1) != labels).double())
    if per_question:
        losses = losses / torch.bincount(question)[question]
    return losses.sum() / (len(wrong) if per_question else len(losses)), wrong == 0


def _hidden_states(model: Any, features: Tensor, batch: PackedRows) -> Tensor:
    """Last hidden states ``[B, L, 192]`` of packed rows."""
    visual = model.model.multi_modal_projector(features)
    embeddings = model.get_input_embeddings()(batch.input_ids)
    is_image = (batch.input_ids == model.config.image_token_id).unsqueeze(-1)
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embeddings.masked_scatter(is_image, visual.to(embeddings.dtype)),
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden
