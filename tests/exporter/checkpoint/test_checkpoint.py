"""Reading checkpoints: tensor names old and new, shards, ties, and what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from lvlm_export.advise.subject import subject_of_checkpoint
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight
from lvlm_export.graphs.attention import NAME as ATTENTION
from lvlm_runtime.errors import LvlmError

CURRENT = {
    # transformers 4.36 to 4.51, and what transformers 5 still writes
    "language_model.model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.vision_model.encoder.layers.1.layer_norm1.bias": "model.vision_tower.encoder.layers.1.layer_norm1.bias",
    "multi_modal_projector.linear_1.bias": "model.multi_modal_projector.linear_1.bias",
    "image_newline": "model.image_newline",
    # transformers 4.52
    "model.language_model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.vision_tower.vision_model.pre_layrnorm.weight": "model.vision_tower.pre_layrnorm.weight",
    "lm_head.weight": "lm_head.weight",
    "model.image_newline": "model.image_newline",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("stored", "current"), CURRENT.items())
def test_names_of_every_era(folder: Path, stored: str, current: str) -> None:
    assert Checkpoint.open(folder)._current_name(stored) == current


def rewrite(directory: Path, change: object) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor_is_named(copy: Path) -> None:
    rewrite(copy, lambda weights: weights.pop("multi_modal_projector.linear_1.bias"))
    with pytest.raises(
        LvlmError, match=r"lacks model.multi_modal_projector.linear_1.bias \(1 in all\)"
    ):
        Checkpoint.open(copy).skeleton(torch.float32, ATTENTION)


def test_an_unknown_tensor_is_named(copy: Path) -> None:
    rewrite(copy, lambda weights: weights.update(extra=torch.zeros(2)))
    with pytest.raises(LvlmError, match=r"has unknown tensor extra"):
        Checkpoint.open(copy).skeleton(torch.float32, ATTENTION)


def test_buffers_of_older_checkpoints_are_ignored(copy: Path) -> None:
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(copy, lambda weights: weights.update({name: torch.zeros(2)}))
    Checkpoint.open(copy).skeleton(torch.float32, ATTENTION)


def test_the_skeleton_reads_no_weights_and_has_real_buffers(folder: Path) -> None:
    model = Checkpoint.open(folder).skeleton(torch.float16, ATTENTION)
    rotary = model.model.language_model.rotary_emb
    assert rotary.inv_freq[0] == 1.0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    directory = tiny.llava(tmp_path / "model", max_shard_size="100KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert len(Checkpoint.open(directory).stored) > 100
    shards[-1].unlink()
    with pytest.raises(LvlmError, match=rf"lacks {shards[-1].name} which its index names"):
        _ = Checkpoint.open(directory).stored


def test_ties_are_found(tmp_path: Path) -> None:
    assert Checkpoint.open(tiny.onevision(tmp_path / "tied")).tied_embeddings
    assert not Checkpoint.open(tiny.llava(tmp_path / "untied")).tied_embeddings


def test_a_weight_changes_the_content_key_and_a_name_does_not(folder: Path, copy: Path) -> None:
    assert Checkpoint.open(copy).content_key() == Checkpoint.open(folder).content_key()
    rewrite(copy, lambda weights: weights["multi_modal_projector.linear_1.bias"].add_(1.0))
    assert Checkpoint.open(copy).content_key() != Checkpoint.open(folder).content_key()


@pytest.mark.parametrize("layers", [7, -6, 0, [-2, 7], [0, -2], []])
def test_a_feature_layer_that_the_tower_does_not_have_is_refused(
    folder: Path, layers: int | list[int]
) -> None:
    checkpoint = Checkpoint.open(folder)
    checkpoint.config.vision_feature_layer = layers
    with pytest.raises(LvlmError, match="is outside the tower's 5 layers"):
        checkpoint.family.shape(checkpoint.config, checkpoint.preprocessor, None)


def test_a_selection_that_would_drop_a_patch_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.llava(tmp_path / "model", tower="siglip"))
    checkpoint.config.vision_feature_select_strategy = "default"
    with pytest.raises(LvlmError, match="'default' does not fit tower 'siglip_vision_model'"):
        checkpoint.family.shape(checkpoint.config, checkpoint.preprocessor, None)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4865522496\n"
INDEX = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@pytest.mark.parametrize(
    "lying_there",
    [
        {},
        {"model.safetensors.index.json": json.dumps(INDEX)},
        {"model.safetensors.index.json": json.dumps(INDEX), "model-1.safetensors": ""},
        {"model.safetensors": POINTER},
        {"model.safetensors.index.json": POINTER},
        {
            "model.safetensors.index.json": json.dumps(INDEX),
            "model-1.safetensors": POINTER,
            "model-2.safetensors": POINTER,
        },
    ],
    ids=[
        "nothing",
        "an index",
        "one of two",
        "a pointer",
        "an index's pointer",
        "a shard's pointer",
    ],
)
def test_a_plan_needs_no_weights(lying_there: dict[str, str], folder: Path, tmp_path: Path) -> None:
    """JSON files alone, downloaded or cloned, plan as the whole checkpoint; a build refuses them."""
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, tmp_path / path.name)
    for name, text in lying_there.items():
        (tmp_path / name).write_text(text)
    checkpoint = Checkpoint.open(tmp_path)
    assert not checkpoint.has_weights
    assert (
        subject_of_checkpoint("x", tmp_path, None).dims
        == subject_of_checkpoint("x", folder, None).dims
    )
    with pytest.raises(LvlmError, match=r"has no model|lacks model-|is a git-lfs pointer"):
        preflight(checkpoint)
    assert Checkpoint.open(folder).has_weights
