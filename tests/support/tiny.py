"""Tiny random checkpoints with real structure: GQA, biases, CLS or none, several tiles, shards.

Everything is made from configurations; nothing is downloaded. The tokenizer is a byte-level BPE
without merges, so any text encodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    GemmaConfig,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
)

SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<video>")
IMAGE_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 256 + len(SPECIAL),
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}


def text_config(kind: str, **changes: Any) -> Any:
    """A small Gemma, Llama, Mistral or Qwen2 (which has biases in q, k and v)."""
    classes = {"gemma": GemmaConfig, "llama": LlamaConfig}
    classes |= {"mistral": MistralConfig, "qwen2": Qwen2Config}
    return classes[kind](**{**TEXT, **changes})


def vision_config(kind: str, image_size: int = 48, layers: int = 5, heads: int = 4) -> Any:
    """A small CLIP (with CLS) or SigLIP tower with 8-pixel patches.

    TensorRT has attention kernels for heads of 16, which are two here, and none for heads of 8.
    """
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": 8,
    }
    if kind == "clip":
        return CLIPVisionConfig(**shape, projection_dim=16)
    return SiglipVisionConfig(**shape, vision_use_head=False)


def llava(
    directory: Path, tower: str = "clip", text: str = "llama", seed: int = 0, **options: Any
) -> Path:
    """Write a LLaVA-1.5-layout checkpoint; ``options`` as ``save`` takes them.

    ``feature_layer`` is ``vision_feature_layer``, a number or a list.
    """
    has_cls = tower == "clip"
    config = LlavaConfig(
        vision_config=vision_config(tower).to_dict(),
        text_config=text_config(text).to_dict(),
        image_token_index=259,
        vision_feature_layer=options.pop("feature_layer", -2 if has_cls else -1),
        vision_feature_select_strategy="default" if has_cls else "full",
        image_seq_length=36,
        tie_word_embeddings=options.pop("tied", False),
    )
    processor = {
        "image_processor_type": "CLIPImageProcessor" if has_cls else "SiglipImageProcessor",
        "size": {"shortest_edge": 48} if has_cls else {"height": 48, "width": 48},
        "crop_size": {"height": 48, "width": 48},
        "do_center_crop": has_cls,
    }
    return save(directory, config, processor, seed, **options)


def projected(
    directory: Path, kind: str, cell: int, tower: str = "clip", seed: int = 0, **options: Any
) -> Path:
    """Write a LLaVA-layout checkpoint with a trained projector that reads three feature layers.

    ``options`` as ``save`` takes them; ``side``, patches along a picture's edge.
    """
    from lvlm_export.families.shared.projected_llava import ProjectedLlava

    has_cls, edge = tower == "clip", 8 * options.pop("side", 12)
    config = LlavaConfig(
        vision_config=vision_config(tower, image_size=edge).to_dict(),
        text_config=text_config(options.pop("text", "llama")).to_dict(),
        image_token_index=259,
        vision_feature_layer=[1, 3, -2] if has_cls else [1, 3, -1],
        vision_feature_select_strategy="default" if has_cls else "full",
        image_seq_length=(edge // 8 // cell) ** 2,
        tie_word_embeddings=False,
        **(
            {"mm_vision_token_compression_type": kind, "mm_projector_type": "mlp2x_gelu"}
            | {"mm_vision_token_compression_kernel_size": cell}
            if kind == "quecc"
            else {"mm_projector_type": kind, "scale_factor": cell}
        ),
    )
    processor = {
        "image_processor_type": "CLIPImageProcessor" if has_cls else "SiglipImageProcessor",
        "size": {"shortest_edge": edge} if has_cls else {"height": edge, "width": edge},
        "crop_size": {"height": edge, "width": edge},
        "do_center_crop": has_cls,
    }
    return save(directory, config, processor, seed, make=ProjectedLlava._from_config, **options)


def onevision(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a LLaVA-OneVision-layout checkpoint: SigLIP, Qwen2, anyres tiles of 48 pixels.

    ``options`` as ``save`` takes them; ``text_width``, of the language model.
    """
    text = text_config("qwen2", hidden_size=options.pop("text_width", TEXT["hidden_size"]))
    pinpoints = [[48 * rows, 48 * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config=vision_config("siglip").to_dict(),
        text_config=text.to_dict(),
        image_token_index=259,
        video_token_index=260,
        vision_feature_layer=options.pop("feature_layer", -1),
        vision_feature_select_strategy="full",
        vision_aspect_ratio=options.pop("aspect", "anyres_max_9"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=options.pop("tied", True),
    )
    processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 48, "width": 48},
        "image_grid_pinpoints": pinpoints,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return save(directory, config, processor, seed, **options)


def llava_next(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a LLaVA-NeXT-layout checkpoint: CLIP, Mistral, anyres tiles of 48 pixels.

    ``options`` as ``save`` takes them; ``text_width``, of the language model.
    """
    text = text_config("mistral", hidden_size=options.pop("text_width", TEXT["hidden_size"]))
    pinpoints = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144], [96, 144]]
    config = LlavaNextConfig(
        vision_config=vision_config("clip", heads=2).to_dict(),
        text_config=text.to_dict(),
        image_token_index=259,
        image_grid_pinpoints=pinpoints,
        image_seq_length=36,
    )
    processor = {
        "aspect_ratio_setting": "anyres",
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 48},
        "crop_size": {"height": 48, "width": 48},
        "image_grid_pinpoints": pinpoints,
    }
    settings = {"processor_class": "LlavaNextProcessor", "patch_size": 8}
    settings |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    return save(directory, config, processor, seed, settings=settings, **options)


def gemma3(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a Gemma-3-layout checkpoint: SigLIP of 12 x 12 patches, 3 x 3 tokens, every other layer local.

    ``options`` as ``save`` takes them; ``window``, positions of a local layer.
    """
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    text = {
        **{key: value for key, value in TEXT.items() if key != "vocab_size"},
        "vocab_size": TEXT["vocab_size"] + 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": options.pop("window", 16),
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    config = Gemma3Config(
        vision_config=vision_config("siglip", image_size=96, heads=2).to_dict(),
        text_config=text,
        mm_tokens_per_image=9,
        boi_token_index=262,
        eoi_token_index=263,
        image_token_index=261,
        tie_word_embeddings=options.pop("tied", True),
    )
    processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 9,
        "size": {"height": 96, "width": 96},
        "do_pan_and_scan": None,
    }
    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"}
    tokens |= {"eoi_token": "<end_of_image>"}
    settings = {"processor_class": "Gemma3Processor", "image_seq_length": 9}
    template = LLAVA_TEMPLATE.replace("<image>\n", "<start_of_image>")
    options |= {"tokens": tokens, "settings": settings, "template": "{{ bos_token }}" + template}
    return save(directory, config, processor, seed, **options)


def paligemma(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a PaliGemma-layout checkpoint: SigLIP, Gemma with one head of keys, no chat template.

    ``options`` as ``save`` takes them.
    """
    text = text_config("gemma", num_key_value_heads=1, head_dim=16)
    config = PaliGemmaConfig(
        vision_config=vision_config("siglip", heads=2).to_dict(),
        text_config=text.to_dict(),
        image_token_index=259,
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
        vocab_size=TEXT["vocab_size"],
        tie_word_embeddings=options.pop("tied", True),
    )
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": 36,
        "size": {"height": 48, "width": 48},
    }
    options |= {"settings": {"processor_class": "PaliGemmaProcessor"}, "template": None}
    return save(directory, config, processor, seed, **options)


def qwen_vl(directory: Path, kind: str = "qwen2_5_vl", seed: int = 0, **options: Any) -> Path:
    """Write a Qwen2-VL-, Qwen2.5-VL- or Qwen3-VL-layout checkpoint of patches of 4 pixels.

    Qwen2.5-VL has windows of 2 x 2 groups; Qwen3-VL heads wider than the model's share, a table of 5 x 5
    positions and two planes. ``options`` as ``save`` takes them.
    """
    text = {
        **{key: value for key, value in TEXT.items() if key != "vocab_size"},
        "vocab_size": 256 + len(SPECIAL),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
    }
    # TensorRT has attention kernels for heads of 16 and none for heads of 8.
    shape = {"depth": 5, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    tokens = {"image_token_id": 259, "video_token_id": 260}
    marks = {"vision_start_token_id": 250, "vision_end_token_id": 251}
    if kind == "qwen2_5_vl":
        own = {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48}
        own |= {"window_size": 16, "fullatt_block_indexes": [1, 4]}
        config: Any = Qwen2_5_VLConfig(vision_config={**shape, **own}, text_config=text, **tokens)
    elif kind == "qwen3_vl":
        own = {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48}
        own |= {"deepstack_visual_indexes": [1, 3], "num_position_embeddings": 25}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
        text |= {"head_dim": 16, "rope_parameters": {**rope, "mrope_interleaved": True}}
        config = Qwen3VLConfig(vision_config={**shape, **own}, text_config=text, **tokens, **marks)
    else:
        own = {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
        config = Qwen2VLConfig(vision_config={**shape, **own}, text_config=text, **tokens, **marks)
    config.tie_word_embeddings = options.pop("tied", False)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 40},
    }
    return save(directory, config, processor, seed, **options)


def internvl(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write an InternVL-layout checkpoint: tiles of 48 pixels, 3 x 3 cells of 2 x 2 patches, Qwen2.

    ``options`` as ``save`` takes them; ``most``, tiles of a picture.
    """
    tokens = {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokens |= {"start_image_token": "<img>", "end_image_token": "</img>"}
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 5,
            # TensorRT has attention kernels for heads of 16 and none for heads of 8.
            "num_attention_heads": 2,
            "image_size": [48, 48],
            "patch_size": [8, 8],
            "attention_bias": True,
            "use_qk_norm": options.pop("qk_norm", True),
        },
        text_config=text_config("qwen2", vocab_size=TEXT["vocab_size"] + 3).to_dict(),
        image_token_id=261,
        image_seq_length=9,
        tie_word_embeddings=options.pop("tied", False),
    )
    processor = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": 48, "width": 48},
        "max_patches": options.pop("most", 4),
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": 9}
    options |= {"tokens": tokens, "settings": settings}
    return save(directory, config, processor, seed, **options)


def save(
    directory: Path,
    config: Any,
    processor: dict[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    make: Callable[[Any], Any] = AutoModelForImageTextToText.from_config,
    tokens: Mapping[str, str] = IMAGE_TOKENS,
    settings: Mapping[str, Any] | None = None,
    template: str | None = LLAVA_TEMPLATE,
) -> Path:
    """Write model, tokenizer and processor files the way ``save_pretrained`` lays them out.

    ``tokens`` are the named special tokens beside those of every text, the first that of pictures;
    ``settings`` the content of processor_config.json, if any, ``template`` that of a chat template.
    """
    torch.manual_seed(seed)
    model = make(config)
    for parameter in model.parameters():
        # Library initialisation is so small that attention is flat; ranks need spread.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif "norm" not in "".join(n for n, p in model.named_parameters() if p is parameter):
            torch.nn.init.normal_(parameter, std=0.05)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    if settings is not None:
        (directory / "processor_config.json").write_text(json.dumps(settings))
    if template is not None:
        template = template.replace("<image>", next(iter(tokens.values())))
        (directory / "chat_template.jinja").write_text(template)
    generation = {"eos_token_id": 257, "bos_token_id": 256, "pad_token_id": 258}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(directory, tokens)
    return directory


def write_tokenizer(directory: Path, tokens: Mapping[str, str] = IMAGE_TOKENS) -> None:
    """A byte-level tokenizer of 256 bytes, the special tokens and those of ``tokens`` behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(dict.fromkeys((*SPECIAL, *tokens.values()))))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": dict(tokens),
    }
    if "image_token" in tokens:
        config["image_token"] = tokens["image_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
