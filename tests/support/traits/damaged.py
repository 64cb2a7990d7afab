"""Rows about weight files that no model comes out of, and why."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from traits import (
    INDEX,
    WEIGHTS,
    drop_weights,
    edit_json,
    edit_weights,
    read_json,
    save_weights,
    trait,
    write_json,
)
from traits.outcomes import refused
from traits.weights import HEAD, TABLE

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4865522496\n"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": 4}
LORA = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def edit_index(directory: Path, name: object) -> None:
    """Place one more tensor in a file of that name."""
    index = read_json(directory / INDEX)
    index["weight_map"]["x"] = name
    write_json(directory / INDEX, index)


@trait(refused(r"lacks lm_head\.weight \(1 in all\)"))
def no_tied_flag_without_head(directory: Path) -> None:
    """Not tied and no head: transformers would draw one by chance."""
    drop_weights(directory, HEAD)


@trait(refused(r"lacks lm_head\.weight \(2 in all\)"))
def tied_flag_without_either(directory: Path) -> None:
    """Tied, and neither table nor head is stored."""
    edit_json(directory / "config.json", tie_word_embeddings=True)
    drop_weights(directory, HEAD, TABLE)


@trait(refused(r"has no model\.safetensors and no .*; model\.fp16\.safetensors is not read"))
def variant_alone(directory: Path) -> None:
    """A model.fp16.safetensors and no other weights."""
    (directory / WEIGHTS).rename(directory / "model.fp16.safetensors")


@trait(refused(r"names '\.\./outside\.safetensors', which is outside the checkpoint"))
def transformers_weights_outside(directory: Path) -> None:
    """config.json names a file beside the directory."""
    (directory / WEIGHTS).rename(directory.parent / "outside.safetensors")
    edit_json(directory / "config.json", transformers_weights="../outside.safetensors")


@trait(refused(r"lacks model-0000\d-of-\d+\.safetensors which its index names"), base="shards")
def shard_missing(directory: Path) -> None:
    """A shard was not copied."""
    sorted(directory.glob("model-*.safetensors"))[1].unlink()


@trait(
    refused(r"model-00002\S+ lacks \S+ which the index places there \(\d+ in all\); copy it"),
    base="shards",
)
def shard_without_its_tensors(directory: Path) -> None:
    """A shard lacks the tensors that the index places there."""
    save_weights(sorted(directory.glob("model-*.safetensors"))[1], {})


@trait(refused(r"names '/etc/passwd\.safetensors', which is outside the checkpoint"), base="shards")
def index_with_an_absolute_name(directory: Path) -> None:
    """An index that leads out of the checkpoint."""
    edit_index(directory, "/etc/passwd.safetensors")


@trait(refused(r"names 'a/\.\./\.\./b\.safetensors', which is outside"), base="shards")
def index_with_a_name_above(directory: Path) -> None:
    """An index that leads out of the checkpoint by way of a folder in it."""
    edit_index(directory, "a/../../b.safetensors")


@trait(refused(r"names 7, which is no \.safetensors file"), base="shards")
def index_with_a_number(directory: Path) -> None:
    """An index with a number for a file name."""
    edit_index(directory, 7)


@trait(refused(r"has no weight_map or no metadata"), base="shards")
def index_without_metadata(directory: Path) -> None:
    """An index as some scripts write it, which transformers cannot read."""
    index = read_json(directory / INDEX)
    write_json(directory / INDEX, {"weight_map": index["weight_map"]})


@trait(refused(r"names 'pytorch_model-00001\.bin', which is no \.safetensors file"), base="shards")
def index_of_pickles(directory: Path) -> None:
    """An index whose files were renamed after a conversion and its entries were not."""
    edit_index(directory, "pytorch_model-00001.bin")


@trait(refused(r"is truncated or damaged .*; copy it again"), base="shards")
def shard_cut_off(directory: Path) -> None:
    """A download that stopped in the middle of a shard."""
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


@trait(refused(r"model\.safetensors is truncated or damaged"))
def header_longer_than_the_file(directory: Path) -> None:
    """Eight bytes that say a header of a gigabyte, and little behind them."""
    (directory / WEIGHTS).write_bytes((1 << 30).to_bytes(8, "little") + b'{"a":')


@trait(refused(r"model\.safetensors is truncated or damaged"))
def weights_of_no_bytes(directory: Path) -> None:
    """An empty file."""
    (directory / WEIGHTS).write_bytes(b"")


@trait(refused(r"model\.safetensors is a git-lfs pointer .*; type git lfs pull"))
def weights_are_a_pointer(directory: Path) -> None:
    """A clone without git-lfs."""
    (directory / WEIGHTS).write_text(POINTER)


@trait(refused(r"config\.json is a git-lfs pointer"))
def config_is_a_pointer(directory: Path) -> None:
    """A clone without git-lfs, where JSON files are large files too."""
    (directory / "config.json").write_text(POINTER)


@trait(refused(r"holds a LoRA adapter \(adapter_config\.json\); merge it first"), base="shards")
def adapter_beside_shards(directory: Path) -> None:
    """Sharded full weights and an unmerged LoRA adapter."""
    save_weights(directory / "adapter_model.safetensors", {LORA: torch.ones(4, 48)})
    write_json(directory / "adapter_config.json", ADAPTER)


@trait(refused(r"holds a LoRA adapter \(adapter_config\.json\); merge it first"))
def adapter_alone(directory: Path) -> None:
    """An adapter and nothing else."""
    for path in directory.iterdir():
        path.unlink()
    save_weights(directory / "adapter_model.safetensors", {LORA: torch.ones(4, 48)})
    write_json(directory / "adapter_config.json", ADAPTER)


@trait(refused(r"holds a LoRA adapter \(tensor .*lora_A\.weight\); merge it first"))
def adapter_inside_the_weights(directory: Path) -> None:
    """LoRA tensors saved with the model's own."""
    edit_weights(directory, lambda weights: weights.update({LORA: torch.ones(4, 48)}))


@trait(refused(r"holds lm_head\.weight twice, as language_model\.lm_head\.weight and as lm_head"))
def parameter_stored_twice(directory: Path) -> None:
    """One parameter under an old and a new name."""
    edit_weights(directory, lambda weights: weights.update({"lm_head.weight": weights[HEAD] * 2}))


@trait(refused(r"holds lm_head\.weight as \[325, 48\] and its config\.json makes it \[261, 48\]"))
def rows_beyond_vocabulary(directory: Path) -> None:
    """64 more rows of table and head than text_config.vocab_size."""

    def grow(weights: dict[str, torch.Tensor]) -> None:
        for name in (HEAD, TABLE):
            weights[name] = torch.cat([weights[name], torch.zeros(64, 48)])

    edit_weights(directory, grow)


@trait(refused(r"holds model\.multi_modal_projector\.linear_1\.bias as \[48, 1\] and its config"))
def tensor_of_another_rank(directory: Path) -> None:
    """A bias with a dimension too many."""
    name = "multi_modal_projector.linear_1.bias"
    edit_weights(directory, lambda weights: weights.update({name: weights[name][:, None]}))


@trait(refused(r"has no model\.safetensors .*; pickled weights are never read"))
def pickles_alone(directory: Path) -> None:
    """Weights as torch.save writes them."""
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


@trait(refused(r"has no model\.safetensors .*; GGUF files are not read"))
def gguf_alone(directory: Path) -> None:
    """What llama.cpp runs."""
    (directory / WEIGHTS).unlink()
    (directory / "model-q4_k_m.gguf").write_bytes(b"GGUF\3\0\0\0")


@trait(refused(r"holds the shards of a training run \(shard-00000-model-00001-of-00002"))
def shards_of_ranks(directory: Path) -> None:
    """What torch's distributed checkpoint leaves."""
    (directory / WEIGHTS).rename(directory / "shard-00000-model-00001-of-00002.safetensors")


@trait(refused(r"has the layout of LLaVA's authors .*llava-hf/llava-1\.5-7b-hf"))
def authors_layout(directory: Path) -> None:
    """The original LLaVA: a language model that names its tower."""
    tower = "openai/clip-vit-large-patch14-336"
    config = {"model_type": "llava_llama", "mm_vision_tower": tower, "hidden_size": 48}
    (directory / "config.json").write_text(json.dumps(config))


@trait(refused(r"has the layout of LLaVA's authors .*llava-hf/llava-onevision-qwen2-7b-ov-hf"))
def authors_onevision_layout(directory: Path) -> None:
    """The original OneVision."""
    config = {"model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384"}
    (directory / "config.json").write_text(json.dumps(config))


@trait(
    refused(r"has the layout of LLaVA's authors \(model_type 'llava', mm_vision_tower 'openai/clip")
)
def authors_first_layout(directory: Path) -> None:
    """The original LLaVA before its type had a name of its own."""
    config = {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14"}
    (directory / "config.json").write_text(json.dumps(config))
