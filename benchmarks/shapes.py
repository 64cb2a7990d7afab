"""Random checkpoints with the shapes of real models, written with little memory.

``python benchmarks/shapes.py DIRECTORY`` writes one with the shapes of LLaVA-OneVision-0.5B
(SigLIP-so400m/14-384 and Qwen2-0.5B): 1.8 GB of bfloat16 in two shards and a third file for the
newline. Values are random but tame (normal, std 0.02), so that nothing overflows and timing is
that of the real model; answers mean nothing. Source of the shapes: llava-hf's
``llava-onevision-qwen2-0.5b-ov-hf`` config.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText

SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2_0_5B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
# LLaVA-1.5-7B with 4 of its 32 decoder layers. Source: llava-hf/llava-1.5-7b-hf config.json.
CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LLAMA_7B_CUT = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
}
# As wide as ViT-S/16 at 384 pixels and SmolLM2-135M, with 12 layers each: a first token in under a second
# on two cores, most of it work that visual tokens make.
SIGLIP_S_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 384,
    "patch_size": 16,
    "vision_use_head": False,
}
QWEN2_SMALL = {
    "model_type": "qwen2",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 4096,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
# Qwen2.5-VL-3B with a quarter of its layers, one of eight of the tower's with attention to the whole
# picture as in the real one, and a smaller vocabulary. Source: arXiv:2502.13923 table 1.
QWEN2_5_TOWER_CUT = {
    "depth": 8,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7],
    "out_hidden_size": 2048,
}
QWEN2_5_3B_CUT = {
    "model_type": "qwen2_5_vl_text",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 32064,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [16, 24, 24],
    },
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
EOS_ID, END_ID, IMAGE_ID = 0, 2, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STD = 0.02
# Values drawn at a time: 16 MB of float32.
CHUNK = 1 << 22


def onevision_config() -> dict[str, Any]:
    """config.json of LLaVA-OneVision-0.5B, with the ids of the small tokenizer below."""
    return {
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "vision_config": SIGLIP_SO400M,
        "text_config": QWEN2_0_5B,
        "image_token_index": IMAGE_ID,
        "video_token_index": IMAGE_ID + 1,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": True,
    }


def llava_config() -> dict[str, Any]:
    """The same tower and text model in the LLaVA-1.5 layout: one view, no newline."""
    config = onevision_config()
    del config["vision_aspect_ratio"], config["video_token_index"]
    return {
        **config,
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": 729,
    }


def llava_7b_cut_config() -> dict[str, Any]:
    """LLaVA-1.5-7B's layout and widths with 4 decoder layers."""
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": CLIP_L_336,
        "text_config": LLAMA_7B_CUT,
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "image_seq_length": 576,
        "tie_word_embeddings": False,
    }


def llava_small_config() -> dict[str, Any]:
    """LLaVA-1.5's layout with 576 tokens a picture and little else."""
    return {
        **llava_config(),
        "vision_config": SIGLIP_S_384,
        "text_config": QWEN2_SMALL,
        "image_seq_length": 576,
    }


def qwen2_5_vl_3b_cut_config() -> dict[str, Any]:
    """Qwen2.5-VL-3B's widths with 8 tower layers and 9 decoder layers."""
    return {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": QWEN2_5_TOWER_CUT,
        "text_config": QWEN2_5_3B_CUT,
        "image_token_id": IMAGE_ID,
        "video_token_id": IMAGE_ID + 1,
        "vision_start_token_id": IMAGE_ID + 2,
        "vision_end_token_id": IMAGE_ID + 3,
        "tie_word_embeddings": True,
    }


def preprocessor_config(processor: str) -> dict[str, Any]:
    """preprocessor_config.json: 384 pixels, SigLIP's normalisation."""
    half = [0.5, 0.5, 0.5]
    size = {"height": 384, "width": 384}
    return {"image_processor_type": processor, "size": size, "image_mean": half, "image_std": half}


def write_onevision(directory: Path) -> None:
    """Write the LLaVA-OneVision-0.5B-shaped checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    config = onevision_config()
    _write_settings(directory, config, preprocessor_config("LlavaOnevisionImageProcessor"))
    _write_weights(directory, _parameter_shapes(config))


def write_llava_7b_cut(directory: Path) -> None:
    """Write the LLaVA-1.5-7B-shaped checkpoint with 4 decoder layers: 2.7 GB of bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = llava_7b_cut_config()
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    _write_settings(directory, config, preprocessor)
    _write_weights(directory, _parameter_shapes(config))


def write_llava_small(directory: Path) -> None:
    """Write the small LLaVA-shaped checkpoint: 100 MB of bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = llava_small_config()
    _write_settings(directory, config, preprocessor_config("SiglipImageProcessor"))
    _write_weights(directory, _parameter_shapes(config))


def write_qwen2_5_vl_3b_cut(directory: Path) -> None:
    """Write the Qwen2.5-VL-3B-shaped checkpoint with a quarter of its layers: 1.9 GB of bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = qwen2_5_vl_3b_cut_config()
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    _write_settings(directory, config, preprocessor)
    _write_weights(directory, _parameter_shapes(config))


def write_text_model(directory: Path, checkpoint: Path) -> None:
    """The text model of ``checkpoint`` alone, as onnxruntime-genai's builder reads it."""
    from safetensors.torch import load_file, save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    kinds = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
    ids = {"bos_token_id": EOS_ID, "eos_token_id": END_ID, "torch_dtype": "bfloat16"}
    content = {**text, **ids, "architectures": [kinds[text["model_type"]]]}
    (directory / "config.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((checkpoint / name).read_bytes())
    tensors = load_file(checkpoint / "text.safetensors")
    renamed = {
        name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()
    }
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})


def write_llava(directory: Path, onevision: Path) -> None:
    """Write the LLaVA-1.5-layout variant, whose shards are links to ``onevision``'s."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_settings(directory, llava_config(), preprocessor_config("SiglipImageProcessor"))
    for shard in ("vision", "text"):
        (directory / f"{shard}.safetensors").symlink_to(
            (onevision / f"{shard}.safetensors").absolute()
        )
    _write_index(directory, _shards(_parameter_shapes(llava_config())))


def _write_settings(directory: Path, config: dict[str, Any], preprocessor: dict[str, Any]) -> None:
    """Every file but the weights."""
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[END_ID],
        "pad_token": SPECIAL_TOKENS[EOS_ID],
        "extra_special_tokens": {"image_token": SPECIAL_TOKENS[IMAGE_ID]},
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "tokenizer_config.json": tokenizer,
        "generation_config.json": {"eos_token_id": [END_ID, EOS_ID]},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _tokenizer().save(str(directory / "tokenizer.json"))


def _tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens and few merges; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is in the picture? user assistant system"], trainer)
    return tokenizer


def _parameter_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, from the model on torch's ``meta`` device."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(config["model_type"], **fields)
        )
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _write_weights(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    shards = _shards(shapes)
    _write_index(directory, shards)
    generator = np.random.default_rng(0)
    for shard, entries in shards.items():
        with (directory / f"{shard}.safetensors").open("wb") as stream:
            _write_shard(stream, entries, generator)


def _shards(shapes: dict[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Which file holds which tensor."""
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        kind = "vision" if "vision_tower" in name or "projector" in name else "text"
        shards.setdefault("newline" if "newline" in name else kind, {})[name] = shape
    return shards


def _write_index(directory: Path, shards: dict[str, dict[str, tuple[int, ...]]]) -> None:
    files = {name: f"{shard}.safetensors" for shard, entries in shards.items() for name in entries}
    sizes = [2 * int(np.prod(shape)) for entries in shards.values() for shape in entries.values()]
    content = {"metadata": {"total_size": sum(sizes)}, "weight_map": files}
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_shard(
    stream: BinaryIO, entries: dict[str, tuple[int, ...]], generator: np.random.Generator
) -> None:
    """A safetensors file: length of the header, header, then the tensors one after another."""
    header, end = {}, 0
    for name, shape in entries.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in entries.items():
        for chunk in _values(name, int(np.prod(shape)), generator):
            stream.write(chunk.tobytes())


def _values(name: str, count: int, generator: np.random.Generator) -> Iterator[NDArray[np.uint16]]:
    """Random bfloat16 values as their bits; norms' weights lie around one."""
    centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    for size in _chunks(count):
        values = generator.standard_normal(size, dtype=np.float32) * STD + centre
        yield (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _chunks(count: int) -> Iterable[int]:
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


if __name__ == "__main__":
    write_onevision(Path(sys.argv[1]))
