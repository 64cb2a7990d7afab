"""The demo model's shape: a LLaVA of 3 million parameters, with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from lvlm_export.demo.scenes import IMAGE_SIZE
from lvlm_export.demo.train.processor import PATCH_SIZE, SPECIAL_TOKENS, VOCAB_SIZE
from lvlm_profiles.files import TEMPORARY, sync_to_disk

BOS_ID, EOS_ID, PAD_ID, IMAGE_ID = range(len(SPECIAL_TOKENS))

IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
"""Visual tokens per picture: 14 x 14 patches, no CLS token."""

ANSWER_TOKENS = 40
"""Upper bound of the length of an answer in tokens, EOS included: a listing has 28."""


def demo_config() -> LlavaConfig:
    """A SigLIP encoder, a two-layer projector and a Llama with grouped-query attention.

    Twelve vision layers, as SigLIP-base has, leave room for reduction inside the encoder.
    """
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        # The usual 0.02 suits wide models; at this width it makes attention start almost uniform,
        # and the model learns late to attend one cell among nine.
        initializer_range=0.06,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Make the model with random float32 weights and greedy generation settings."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(demo_config())
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
    )
    return model


def save_checkpoint(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, directory: Path
) -> None:
    """Write the Hugging Face directory, each file whole; leaves the model in float16."""
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory.with_name(f".{directory.name}{TEMPORARY}")
    shutil.rmtree(beside, ignore_errors=True)
    processor.save_pretrained(beside)
    # transformers 5 keeps it in processor_config.json only; older readers look for this file.
    processor.image_processor.save_pretrained(beside)
    model.half().save_pretrained(beside)
    (beside / "model.safetensors").chmod(0o644)
    for path in sorted(beside.iterdir()):
        sync_to_disk(path)
        path.replace(directory / path.name)
    beside.rmdir()
