"""Rows about tokenizers: which token stands for a picture, and what the tokenizer's files are."""

from __future__ import annotations

from pathlib import Path

import torch

from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight
from lvlm_export.checkpoint.processing import prompt_files
from lvlm_runtime.prompt.encoder import PromptEncoder
from traits import edit_json, edit_weights, read_json, trait, write_json
from traits.damaged import POINTER
from traits.outcomes import built, refused, same_ids, same_pixels
from traits.weights import HEAD, TABLE

IMAGE = {
    "content": "<image>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


def take_off(directory: Path, *tokens: str) -> None:
    """Take added tokens out of tokenizer.json."""
    raw = read_json(directory / "tokenizer.json")
    raw["added_tokens"] = [each for each in raw["added_tokens"] if each["content"] not in tokens]
    write_json(directory / "tokenizer.json", raw)


@trait(refused(r"image token of config\.json is 250 and <image> of the tokenizer is 259"))
def image_id_of_another_token(directory: Path) -> None:
    """config.json names another token than the tokenizer."""
    edit_json(directory / "config.json", image_token_index=250, image_token_id=250)


@trait(refused(r"image token 259 is outside the token table of 259 rows"))
def image_id_beyond_the_table(directory: Path) -> None:
    """A token that was added to the tokenizer and not to the model."""
    edit_json(directory / "config.json", text_config__vocab_size=259)

    def shrink(weights: dict[str, torch.Tensor]) -> None:
        for name in (HEAD, TABLE):
            weights[name] = weights[name][:259].clone()

    edit_weights(directory, shrink)


@trait(same_ids)
def added_tokens_beside(directory: Path) -> None:
    """<image> in added_tokens_decoder of tokenizer_config.json, not in tokenizer.json."""
    take_off(directory, "<image>", "<video>")
    edit_json(directory / "tokenizer_config.json", added_tokens_decoder={"259": IMAGE})


@trait(same_ids)
def added_tokens_in_a_file_of_their_own(directory: Path) -> None:
    """<image> in added_tokens.json, as slow tokenizers of transformers 4 left it."""
    take_off(directory, "<image>", "<video>")
    write_json(directory / "added_tokens.json", {"<image>": 259, "<video>": 260})


@trait(same_ids)
def special_tokens_in_a_map(directory: Path) -> None:
    """The end token under another name in special_tokens_map.json."""
    write_json(directory / "special_tokens_map.json", {"eos_token": "</s>", "unk_token": "<pad>"})


@trait(refused(r"has no tokenizer\.json; save its fast tokenizer there"))
def slow_tokenizer_alone(directory: Path) -> None:
    """No tokenizer.json."""
    (directory / "tokenizer.json").unlink()


@trait(refused(r"tokenizer\.json is a git-lfs pointer"))
def tokenizer_is_a_pointer(directory: Path) -> None:
    """A clone without git-lfs, where tokenizer.json is a large file too."""
    (directory / "tokenizer.json").write_text(POINTER)


@trait(refused(r"chat_template\.jinja is a git-lfs pointer"))
def template_is_a_pointer(directory: Path) -> None:
    """A clone without git-lfs that tracks templates."""
    (directory / "chat_template.jinja").write_text(POINTER)


@trait(refused(r"no chat template"))
def no_chat_template(directory: Path) -> None:
    """A base model: nobody has said what a conversation looks like."""
    (directory / "chat_template.jinja").unlink()


@trait(same_pixels)
def two_processor_files(directory: Path) -> None:
    """A preprocessor_config.json left beside the processor_config.json of transformers 5."""
    old = read_json(directory / "preprocessor_config.json")
    content = {
        "processor_class": "LlavaProcessor",
        "patch_size": 8,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_token": "<image>",
        "image_processor": {**old, "image_mean": [0.1] * 3, "image_std": [1.0] * 3},
    }
    write_json(directory / "processor_config.json", content)


def content_as_text(directory: Path) -> None:
    """The template's content is a text with the image token in it, never the words of a list."""
    preflight(Checkpoint.open(directory))
    encoder = PromptEncoder.read(prompt_files(directory), directory)
    ids = encoder.encode("What is this?", 1)
    words = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    assert words.count("<image>") == 1
    assert "What is this?" in words
    assert "type" not in words


@trait(content_as_text)
def text_model_template(directory: Path) -> None:
    """The chat template of the text model alone, which trims its content."""
    (directory / "chat_template.jinja").unlink()
    source = (
        "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' ~ (m['content'] | trim) ~ '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    edit_json(directory / "tokenizer_config.json", chat_template=source)


@trait(built, slow=True)
def ngram_rule(directory: Path) -> None:
    """generation_config.json with a rule about answers; the gate compares like with like."""
    edit_json(directory / "generation_config.json", no_repeat_ngram_size=2)
