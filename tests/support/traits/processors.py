"""Rows about which of several files counts: templates, special tokens, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoProcessor

import tiny
from lvlm_export.check.reference_io import quiet_transformers
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.preflight import preflight
from lvlm_export.checkpoint.processing import prompt_files
from lvlm_runtime.prompt.encoder import PromptEncoder
from traits import edit_json, read_json, trait, write_json
from traits.outcomes import refused, same_pixels
from traits.prompts import IMAGE, take_off

TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
TOKENIZER, PROCESSOR, PICTURES = (
    *("tokenizer_config.json", "processor_config.json"),
    "preprocessor_config.json",
)


def same_prompt(directory: Path) -> None:
    """A question about a picture is cut into the ids that ``AutoProcessor`` gives it."""
    preflight(Checkpoint.open(directory))
    encoder = PromptEncoder.read(prompt_files(directory), directory)
    with quiet_transformers():
        processor = AutoProcessor.from_pretrained(directory)
    tokenizer = processor.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        # A processor does not look into tokenizer_config.json; AutoTokenizer does.
        chat_template=None if processor.chat_template else tokenizer.get_chat_template(),
        add_generation_prompt=True,
    )
    starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    expected = tokenizer(text, add_special_tokens=not starts).input_ids
    assert encoder.encode("What is it?", 1) == list(expected)


def beginning(word: str) -> str:
    """A template whose prompts begin with a word."""
    return f"{word} {tiny.LLAVA_TEMPLATE}"


def edit_or_make(path: Path, **changes: Any) -> None:
    """As ``edit_json``, for a file that need not be there."""
    write_json(path, {**(read_json(path) if path.exists() else {}), **changes})


def drop_keys(path: Path, *keys: str) -> None:
    """Take keys out of a JSON object."""
    write_json(path, {key: value for key, value in read_json(path).items() if key not in keys})


def nest(directory: Path, **changes: Any) -> None:
    """The image processor's settings within processor_config.json, with changes."""
    settings = {**read_json(directory / PICTURES), **changes}
    edit_or_make(directory / PROCESSOR, image_processor=settings)


@trait(same_prompt)
def old_template_beside_the_new(directory: Path) -> None:
    """chat_template.json of transformers 4 counts before chat_template.jinja."""
    write_json(directory / OLD_TEMPLATE, {"chat_template": beginning("OLD")})


@trait(same_prompt)
def template_in_the_processor(directory: Path) -> None:
    """A template in processor_config.json counts before both files of templates."""
    write_json(directory / OLD_TEMPLATE, {"chat_template": beginning("OLD")})
    edit_or_make(directory / PROCESSOR, chat_template=beginning("PROCESSOR"))


@trait(same_prompt)
def template_in_the_tokenizer_too(directory: Path) -> None:
    """chat_template.jinja counts before the template in tokenizer_config.json."""
    edit_json(directory / TOKENIZER, chat_template=beginning("TOKENIZER"))


@trait(same_prompt)
def old_template_before_the_tokenizers(directory: Path) -> None:
    """chat_template.json counts before the template in tokenizer_config.json."""
    (directory / TEMPLATE).unlink()
    write_json(directory / OLD_TEMPLATE, {"chat_template": beginning("OLD")})
    edit_json(directory / TOKENIZER, chat_template=beginning("TOKENIZER"))


@trait(same_prompt)
def several_templates_in_the_tokenizer(directory: Path) -> None:
    """Of named templates the default counts."""
    (directory / TEMPLATE).unlink()
    templates = [
        {"name": "rag", "template": beginning("RAG")},
        {"name": "default", "template": beginning("DEFAULT")},
    ]
    edit_json(directory / TOKENIZER, chat_template=templates)


@trait(same_prompt)
def templates_in_a_folder(directory: Path) -> None:
    """Templates for other uses in additional_chat_templates."""
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text(beginning("RAG"))


@trait(same_prompt)
def default_template_in_a_folder(directory: Path) -> None:
    """The default template lies in additional_chat_templates alone."""
    (directory / TEMPLATE).unlink()
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "default.jinja").write_text(beginning("FOLDER"))


@trait(refused(r"conflicting files"))
def old_template_beside_a_folder(directory: Path) -> None:
    """chat_template.json beside additional_chat_templates, which transformers refuses."""
    write_json(directory / OLD_TEMPLATE, {"chat_template": beginning("OLD")})
    templates_in_a_folder.write(directory)


@trait(refused(r"gives no prompt with a picture and a question"))
def template_without_pictures(directory: Path) -> None:
    """A template that takes parts and leaves pictures out."""
    source = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    (directory / TEMPLATE).write_text(source)


@trait(same_prompt)
def special_tokens_map_counts(directory: Path) -> None:
    """special_tokens_map.json counts before tokenizer_config.json."""
    write_json(directory / "special_tokens_map.json", {"bos_token": "</s>"})
    (directory / TEMPLATE).write_text("{{ bos_token }}" + tiny.LLAVA_TEMPLATE)


@trait(same_prompt)
def special_tokens_map_is_off(directory: Path) -> None:
    """added_tokens_decoder in tokenizer_config.json turns special_tokens_map.json off."""
    special_tokens_map_counts.write(directory)
    edit_json(directory / TOKENIZER, added_tokens_decoder={"259": IMAGE})


@trait(same_prompt)
def image_token_of_tokenizer_and_processor(directory: Path) -> None:
    """The tokenizer's image token counts before the processor's."""
    edit_or_make(directory / PROCESSOR, image_token="<video>")


@trait(same_prompt)
def image_token_of_the_processor(directory: Path) -> None:
    """The processor's image token, where the tokenizer names none."""
    drop_keys(directory / TOKENIZER, "image_token", "extra_special_tokens")
    edit_or_make(directory / PROCESSOR, image_token="<video>")
    edit_json(directory / "config.json", image_token_index=260, image_token_id=260)
    source = tiny.LLAVA_TEMPLATE.replace("<image>", "<video>")
    (directory / TEMPLATE).write_text(source)


@trait(same_prompt)
def extra_special_tokens_as_a_list(directory: Path) -> None:
    """The image token in a list without names."""
    drop_keys(directory / TOKENIZER, "image_token")
    edit_json(directory / TOKENIZER, extra_special_tokens=["<image>"])


@trait(same_prompt)
def image_token_that_is_only_named(directory: Path) -> None:
    """The image token is named in tokenizer_config.json and in no file of tokens."""
    take_off(directory, "<image>", "<video>")


@trait(same_prompt)
def special_token_with_its_flags(directory: Path) -> None:
    """A special token as an object, as slow tokenizers save theirs."""
    token = {**IMAGE, "content": "<s>", "__type": "AddedToken"}
    edit_json(directory / TOKENIZER, bos_token=token)
    (directory / TEMPLATE).write_text("{{ bos_token }}" + tiny.LLAVA_TEMPLATE)


@trait(same_prompt)
def template_that_names_the_image_token(directory: Path) -> None:
    """A template that writes {{ image_token }}."""
    (directory / TEMPLATE).write_text(tiny.LLAVA_TEMPLATE.replace("<image>", "{{ image_token }}"))


@trait(same_prompt)
def beginning_of_the_tokenizer(directory: Path) -> None:
    """A tokenizer.json that puts <s> in front."""
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    edit_json(directory / "tokenizer.json", post_processor=processor)


@trait(same_prompt)
def beginning_of_template_and_tokenizer(directory: Path) -> None:
    """A template that writes <s> before a tokenizer that puts it in front: once is enough."""
    beginning_of_the_tokenizer.write(directory)
    (directory / TEMPLATE).write_text("<s>" + tiny.LLAVA_TEMPLATE)


@trait(same_prompt)
def code_beside_a_known_class(directory: Path) -> None:
    """auto_map names code of the checkpoint's own, which is not run."""
    edit_json(directory / TOKENIZER, auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})


@trait(same_prompt)
def add_bos_token_beside_a_tokenizer(directory: Path) -> None:
    """add_bos_token has no effect where there is a tokenizer.json."""
    edit_json(directory / TOKENIZER, add_bos_token=True)


@trait(same_prompt)
def class_with_a_pre_tokenizer(directory: Path) -> None:
    """A tokenizer class that brings a pre-tokenizer of its own in place of tokenizer.json's."""
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    edit_json(directory / "tokenizer.json", pre_tokenizer={**spaced, "use_regex": True})
    edit_json(directory / TOKENIZER, tokenizer_class="Qwen2Tokenizer")


@trait(refused(r"gives 'z' the id 2147483648, at most 16777215 is read; correct tokenizer\.json"))
def id_beyond_every_vocabulary(directory: Path) -> None:
    """An id up to which the library tokenizers would count, for minutes and gigabytes."""
    model = read_json(directory / "tokenizer.json")["model"]
    vocabulary = {**model["vocab"], "z": 1 << 31}
    edit_json(directory / "tokenizer.json", model={**model, "vocab": vocabulary})


@trait(same_prompt)
def class_of_another_kind(directory: Path) -> None:
    """LlamaTokenizer named beside a byte-level tokenizer.json."""
    edit_json(directory / TOKENIZER, tokenizer_class="LlamaTokenizer")


@trait(refused(r"transformers does not read the tokenizer in .*Special token bos_token"))
def special_token_that_is_a_number(directory: Path) -> None:
    """bos_token as an id."""
    edit_json(directory / TOKENIZER, bos_token=1)


@trait(same_pixels)
def image_processor_of_another_class(directory: Path) -> None:
    """The nested image processor is SigLIP's, the one that was left is CLIP's."""
    size = {"height": 48, "width": 48}
    nest(directory, image_processor_type="SiglipImageProcessor", size=size)


@trait(same_pixels)
def image_processor_nested_alone(directory: Path) -> None:
    """As transformers 5 saves it: no preprocessor_config.json."""
    nest(directory, image_std=[1.0] * 3)
    (directory / PICTURES).unlink()


@trait(same_pixels)
def image_processor_of_null(directory: Path) -> None:
    """image_processor is null in processor_config.json, so preprocessor_config.json counts."""
    write_json(directory / PROCESSOR, {"image_processor": None})


@trait(same_pixels)
def image_processor_without_a_type(directory: Path) -> None:
    """No image_processor_type: the one of the model's family."""
    drop_keys(directory / PICTURES, "image_processor_type")


@trait(same_pixels)
def feature_extractor_of_transformers_4(directory: Path) -> None:
    """feature_extractor_type in place of image_processor_type."""
    drop_keys(directory / PICTURES, "image_processor_type")
    edit_json(directory / PICTURES, feature_extractor_type="CLIPFeatureExtractor")


@trait(refused(r"transformers' processor makes 9 image tokens where the model gives 36"), slow=True)
def patch_size_of_another_tower(directory: Path) -> None:
    """processor_config.json counts patches of 16 pixels, the tower's are of 8."""
    content = {"patch_size": 16, "num_additional_image_tokens": 1}
    write_json(directory / PROCESSOR, {**content, "vision_feature_select_strategy": "default"})
