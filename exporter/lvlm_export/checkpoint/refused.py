"""What looks like a checkpoint and cannot be exported as it is, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_export.checkpoint.shards import StoredTensor
from lvlm_runtime.errors import LvlmError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
ADAPTER_TENSOR = re.compile(r"\.(lora_[A-Za-z]+|base_layer|modules_to_save)\b")
# Where quantisers write that they were here: AutoGPTQ, AutoAWQ and TensorRT Model Optimizer.
QUANTISER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# transformers, compressed-tensors and MLX write it into config.json, at the top or in a part.
QUANTISER_KEYS = ("quantization_config", "compression_config", "quantization")
# Of GPTQ and AWQ, compressed-tensors, bitsandbytes and block-scaled FP8.
PACKED_TENSOR = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|SCB"
    r"|weight\.(absmax|nested_absmax|quant_map|quant_state\.\w+))$"
)
ELEMENT_TYPES = ("F64", "F32", "F16", "BF16")
# The authors' layout by its model_type: what llava-hf converted.
CONVERTED = {
    "llava_llama": "llava-hf/llava-1.5-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
}


def refuse_adapter(directory: Path) -> None:
    """LvlmError where an adapter lies there, alone or beside the weights that it changes.

    transformers applies it where peft is installed and ignores it elsewhere.
    """
    for name in ADAPTER_FILES:
        if (directory / name).exists():
            raise LvlmError(
                f"{directory} holds a LoRA adapter ({name}); merge it first (merge_and_unload of"
                " peft, then save_pretrained into another directory), or remove the file if it is"
                " merged already"
            )


def refuse_authors_layout(directory: Path, config: Mapping[str, Any]) -> None:
    """LvlmError for a checkpoint as haotian-liu's code writes it, which lacks the vision tower."""
    if "mm_vision_tower" not in config or isinstance(config.get("vision_config"), dict):
        return
    kind = config.get("model_type")
    converted = CONVERTED.get(str(kind), CONVERTED["llava_llama"])
    raise LvlmError(
        f"{directory} has the layout of LLaVA's authors (model_type {kind!r}, mm_vision_tower"
        f" {config['mm_vision_tower']!r}); give the checkpoint in the layout of transformers, such"
        f" as {converted}, or convert it with convert_llava_weights_to_hf.py of transformers"
    )


def refuse_quantised(directory: Path, config: Mapping[str, Any]) -> None:
    """LvlmError where config.json or a quantiser's file says that the weights are quantised."""
    said = [f"{place} of config.json" for place in _declarations(config, "")]
    said += [name for name in QUANTISER_FILES if (directory / name).exists()]
    if said:
        raise LvlmError(
            f"{directory} holds quantised weights ({said[0]}); give the unquantised checkpoint"
        )


def _declarations(config: Mapping[str, Any], place: str) -> Iterator[str]:
    """Dotted names of the keys that say so, at any depth that a configuration has."""
    for key, value in config.items():
        if key in QUANTISER_KEYS and value not in (None, False):
            yield place + key
        elif isinstance(value, dict):
            yield from _declarations(value, f"{place}{key}.")


def refuse_tensors(directory: Path, stored: Iterable[StoredTensor]) -> None:
    """LvlmError for packed weights, an adapter's weights or an element type that is no float."""
    for tensor in stored:
        name = tensor.name
        if ADAPTER_TENSOR.search(name):
            raise LvlmError(
                f"{directory} holds a LoRA adapter (tensor {name}); merge it first"
                " (merge_and_unload of peft, then save_pretrained)"
            )
        if PACKED_TENSOR.search(name):
            raise LvlmError(
                f"{directory} holds quantised weights (tensor {name}); give the unquantised"
                " checkpoint"
            )
        if tensor.dtype not in ELEMENT_TYPES:
            raise LvlmError(
                f"{directory} holds {name} as {tensor.dtype}, which is quantised; give the"
                f" unquantised checkpoint ({', '.join(ELEMENT_TYPES)})"
            )
