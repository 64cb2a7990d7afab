"""Rows about weight files: which of them count, who is tied to whom, and what they call a tensor."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from traits import (
    INDEX,
    WEIGHTS,
    Trait,
    drop_weights,
    edit_json,
    edit_weights,
    read_json,
    save_weights,
    trait,
    write_json,
)
from traits.outcomes import built, same_weights

HEAD, TABLE = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@trait(same_weights)
def tied_flag_but_own_head(directory: Path) -> None:
    """text_config ties the head, which is stored and another one: fine-tuned untied."""
    edit_json(directory / "config.json", text_config__tie_word_embeddings=True)


tied_flag_but_own_head_built = Trait(tied_flag_but_own_head.write, built, "llava", slow=True)


@trait(same_weights)
def tied_flag_and_equal_head(directory: Path) -> None:
    """Tied, and both are stored with the same numbers, as a pickle leaves it."""
    edit_json(directory / "config.json", tie_word_embeddings=True)
    edit_weights(directory, lambda weights: weights.update({HEAD: weights[TABLE].clone()}))


@trait(same_weights)
def tied_flag_without_head(directory: Path) -> None:
    """Tied, and the table alone is stored."""
    edit_json(directory / "config.json", tie_word_embeddings=True)
    drop_weights(directory, HEAD)


@trait(same_weights)
def tied_flag_without_table(directory: Path) -> None:
    """Tied, and the head alone is stored, as some conversions leave it."""
    edit_json(directory / "config.json", text_config__tie_word_embeddings=True)
    drop_weights(directory, TABLE)


@trait(same_weights)
def stray_averaged_weights(directory: Path) -> None:
    """A model_ema.safetensors with the same names and other values."""
    weights = {name: tensor * 1.5 for name, tensor in load_file(directory / WEIGHTS).items()}
    save_weights(directory / "model_ema.safetensors", weights)


@trait(same_weights)
def stray_authors_weights(directory: Path) -> None:
    """A consolidated.safetensors of another layout."""
    save_weights(
        directory / "consolidated.safetensors", {"tok_embeddings.weight": torch.zeros(4, 4)}
    )


@trait(same_weights, base="shards")
def stray_whole_file_beside_shards(directory: Path) -> None:
    """A model.safetensors beside an index: the whole file counts, as in transformers."""
    index = read_json(directory / INDEX)
    weights = {}
    for name in set(index["weight_map"].values()):
        weights.update(load_file(directory / name))
    save_weights(directory / WEIGHTS, {name: tensor + 0.25 for name, tensor in weights.items()})


@trait(same_weights, base="shards")
def stray_shard_of_another_count(directory: Path) -> None:
    """A shard of an earlier save that the index does not name."""
    shard = sorted(directory.glob("model-00001-of-*"))[0]
    weights = {name: tensor * 2 for name, tensor in load_file(shard).items()}
    save_weights(directory / "model-00001-of-00099.safetensors", weights)


@trait(same_weights, base="shards")
def shards_that_hold_what_the_index_places_elsewhere(directory: Path) -> None:
    """Two tensors under each other's shard in the index; every shard is read whole."""
    index = read_json(directory / INDEX)
    places = index["weight_map"]
    first, last = min(places, key=places.get), max(places, key=places.get)
    places[first], places[last] = places[last], places[first]
    write_json(directory / INDEX, index)


@trait(same_weights)
def transformers_weights_names_the_file(directory: Path) -> None:
    """config.json names a file of another name."""
    (directory / WEIGHTS).rename(directory / "tuned.safetensors")
    edit_json(directory / "config.json", transformers_weights="tuned.safetensors")


@trait(same_weights)
def mixed_element_types(directory: Path) -> None:
    """A checkpoint whose parts were saved as they were trained."""

    def mix(weights: dict[str, torch.Tensor]) -> None:
        for name, dtype in ((HEAD, torch.bfloat16), (TABLE, torch.float16)):
            weights[name] = weights[name].to(dtype)

    edit_weights(directory, mix)


@trait(same_weights)
def buffers_of_older_checkpoints(directory: Path) -> None:
    """Rotary frequencies and position ids as transformers 4.30 stored them."""
    rotary = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    ids = "vision_tower.vision_model.embeddings.position_ids"
    edit_weights(
        directory,
        lambda weights: weights.update({rotary: torch.zeros(6), ids: torch.arange(37)[None]}),
    )


def renamed(directory: Path, *rules: tuple[str, str]) -> None:
    """Store every tensor under another name."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            new = name
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            weights[new] = weights.pop(name)

    edit_weights(directory, change)


HEAD_RULE = (r"^language_model\.lm_head", "lm_head")
TEXT_RULE = (r"^language_model\.model", "model.language_model")
PART_RULE = (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1")


@trait(same_weights)
def names_of_transformers_4_52(directory: Path) -> None:
    """All parts under ``model``, a ``vision_model`` in the tower."""
    renamed(directory, HEAD_RULE, TEXT_RULE, PART_RULE)


@trait(same_weights, base="onevision")
def names_of_the_module_tree(directory: Path) -> None:
    """As the parameters are called in memory, tied, with a newline."""
    renamed(
        directory, HEAD_RULE, TEXT_RULE, PART_RULE, (r"vision_tower\.vision_model", "vision_tower")
    )


@trait(same_weights, base="shards")
def files_are_links(directory: Path) -> None:
    """A snapshot of the hub's cache: every file is a link out of the directory."""
    blobs = directory.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))


@trait(same_weights, base="shards")
def shards_in_a_folder(directory: Path) -> None:
    """An index that names files of a folder below."""
    (directory / "weights").mkdir()
    index = read_json(directory / INDEX)
    for name in set(index["weight_map"].values()):
        (directory / name).rename(directory / "weights" / name)
    places = {tensor: f"weights/{name}" for tensor, name in index["weight_map"].items()}
    write_json(directory / INDEX, {**index, "weight_map": places})


@trait(same_weights)
def code_beside_the_weights(directory: Path) -> None:
    """auto_map and a module that must not run: the family's own class is taken."""
    (directory / "modeling_mine.py").write_text("raise SystemExit('this ran')")
    auto_map = {
        "AutoModelForImageTextToText": "modeling_mine.Mine",
        "AutoConfig": "modeling_mine.C",
    }
    edit_json(directory / "config.json", auto_map=auto_map)


@trait(same_weights)
def weights_without_metadata(directory: Path) -> None:
    """A file that does not say which library wrote it."""
    save_file(load_file(directory / WEIGHTS), directory / WEIGHTS)


@trait(same_weights)
def weights_in_double(directory: Path) -> None:
    """Weights of 64 bits."""
    edit_weights(directory, lambda weights: weights.update({HEAD: weights[HEAD].double()}))
