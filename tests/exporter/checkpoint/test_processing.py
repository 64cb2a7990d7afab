"""Which of several files counts, against the processor, tokenizer and template of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

import tiny
from helpers import build_tiny
from lvlm_export.checkpoint.processing import image_settings, prompt_files
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE_LAYOUT
from lvlm_runtime.image.preprocess import pixel_values
from lvlm_runtime.prompt.encoder import PromptEncoder

Change = Callable[[Path], object]


@pytest.fixture
def files(tiny_llava: Path, tmp_path: Path) -> Path:
    """The JSON files and the template of the tiny LLaVA, without its weights."""
    for path in (tiny_llava / "checkpoint").iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def edit(name: str, **entries: Any) -> Change:
    """Entries of a JSON file, which need not be there; None takes one out."""

    def change(directory: Path) -> None:
        path = directory / name
        content = json.loads(path.read_text()) if path.exists() else {}
        kept = {**content, **entries}
        path.write_text(json.dumps({key: kept[key] for key in kept if kept[key] is not None}))

    return change


def template(word: str) -> str:
    """A template whose prompts begin with a word."""
    return f"{word} {tiny.LLAVA_TEMPLATE}"


def write(name: str, text: str) -> Change:
    def change(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)

    return change


def remove(name: str) -> Change:
    return lambda directory: (directory / name).unlink()


def without_added(*contents: str) -> Change:
    """Tokens that ``tokenizer.json`` lacks, as those that only another file adds."""

    def change(directory: Path) -> None:
        path = directory / "tokenizer.json"
        raw = json.loads(path.read_text())
        raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] not in contents]
        path.write_text(json.dumps(raw))

    return change


def pre_tokenizer(**content: Any) -> Change:
    return edit("tokenizer.json", pre_tokenizer=content)


def bos_first(directory: Path) -> None:
    """A ``tokenizer.json`` that puts ``<s>`` in front."""
    processor = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    edit("tokenizer.json", post_processor=processor)(directory)


TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
IMAGE = {**TOKEN, "content": "<image>", "special": True}
NO_JINJA = remove("chat_template.jinja")
PROMPTS: dict[str, list[Change]] = {
    "as saved by transformers 5": [],
    "chat_template.json counts before chat_template.jinja": [
        edit("chat_template.json", chat_template=template("OLD"))
    ],
    "processor_config.json's template counts before both": [
        edit("chat_template.json", chat_template=template("OLD")),
        edit("processor_config.json", chat_template=template("PROCESSOR")),
    ],
    "chat_template.jinja counts before tokenizer_config.json's": [
        edit("tokenizer_config.json", chat_template=template("TOKENIZER"))
    ],
    "chat_template.json counts before tokenizer_config.json's": [
        NO_JINJA,
        edit("chat_template.json", chat_template=template("OLD")),
        edit("tokenizer_config.json", chat_template=template("TOKENIZER")),
    ],
    "tokenizer_config.json's template alone": [
        NO_JINJA,
        edit("tokenizer_config.json", chat_template=template("TOKENIZER")),
    ],
    "of tokenizer_config.json's templates the default": [
        NO_JINJA,
        edit(
            "tokenizer_config.json",
            chat_template=[
                {"name": "rag", "template": template("RAG")},
                {"name": "default", "template": template("DEFAULT")},
            ],
        ),
    ],
    "of the templates in a folder the default": [
        write("additional_chat_templates/rag.jinja", template("RAG"))
    ],
    "a default template in the folder and none beside": [
        NO_JINJA,
        write("additional_chat_templates/default.jinja", template("FOLDER")),
    ],
    "image token in added_tokens_decoder alone": [
        without_added("<image>", "<video>"),
        edit("tokenizer_config.json", added_tokens_decoder={"259": IMAGE}),
    ],
    "image token in added_tokens.json alone": [
        without_added("<image>", "<video>"),
        write("added_tokens.json", json.dumps({"<image>": 259})),
    ],
    "image token in no file of tokens but named": [without_added("<image>", "<video>")],
    "special_tokens_map.json counts before tokenizer_config.json": [
        write("special_tokens_map.json", json.dumps({"bos_token": "</s>"})),
        write("chat_template.jinja", "{{ bos_token }}" + tiny.LLAVA_TEMPLATE),
    ],
    "added_tokens_decoder turns special_tokens_map.json off": [
        write("special_tokens_map.json", json.dumps({"bos_token": "</s>"})),
        edit("tokenizer_config.json", added_tokens_decoder={"259": IMAGE}),
        write("chat_template.jinja", "{{ bos_token }}" + tiny.LLAVA_TEMPLATE),
    ],
    "a special token written as an object": [
        edit(
            "tokenizer_config.json", bos_token={**TOKEN, "__type": "AddedToken", "content": "<s>"}
        ),
        write("chat_template.jinja", "{{ bos_token }}" + tiny.LLAVA_TEMPLATE),
    ],
    "the tokenizer's image token counts before the processor's": [
        edit("processor_config.json", image_token="<video>")
    ],
    "the processor's image token where the tokenizer names none": [
        edit("tokenizer_config.json", image_token=None, extra_special_tokens=None),
        edit("processor_config.json", image_token="<video>"),
        write("chat_template.jinja", tiny.LLAVA_TEMPLATE.replace("<image>", "<video>")),
    ],
    "image token named in extra_special_tokens alone": [
        edit("tokenizer_config.json", image_token=None)
    ],
    "extra_special_tokens as a list": [
        edit("tokenizer_config.json", image_token=None, extra_special_tokens=["<image>"])
    ],
    "a template that names the image token": [
        write("chat_template.jinja", tiny.LLAVA_TEMPLATE.replace("<image>", "{{ image_token }}"))
    ],
    "a template that writes <s> before a tokenizer that does": [
        bos_first,
        write("chat_template.jinja", "<s>" + tiny.LLAVA_TEMPLATE),
    ],
    "a tokenizer that puts <s> in front": [bos_first],
    "add_bos_token beside a tokenizer.json has no effect": [
        edit("tokenizer_config.json", add_bos_token=True)
    ],
    "a tokenizer class that brings its own pre-tokenizer": [
        pre_tokenizer(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        edit("tokenizer_config.json", tokenizer_class="Qwen2Tokenizer"),
    ],
    "a Llama class before a byte-level tokenizer.json": [
        edit("tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    ],
    "code of its own beside a class that is known": [
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})
    ],
    "truncation and padding that were saved": [
        edit(
            "tokenizer.json",
            truncation={
                "direction": "Right",
                "max_length": 4096,
                "strategy": "LongestFirst",
                "stride": 0,
            },
        )
    ],
}


def ids_of_transformers(directory: Path, question: str) -> list[int]:
    """Token ids of a question about one picture, with one image token."""
    processor = AutoProcessor.from_pretrained(directory)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    tokenizer = processor.tokenizer
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        # A processor does not look into tokenizer_config.json; AutoTokenizer does.
        chat_template=None if processor.chat_template else tokenizer.get_chat_template(),
        add_generation_prompt=True,
    )
    starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer(text, add_special_tokens=not starts).input_ids)


@pytest.mark.parametrize("trait", PROMPTS)
def test_a_prompt_is_that_of_transformers(trait: str, files: Path) -> None:
    for change in PROMPTS[trait]:
        change(files)
    encoder = PromptEncoder.read(prompt_files(files), files)
    assert encoder.encode("What is it?", 1) == ids_of_transformers(files, "What is it?")


NESTED = {"image_mean": [0.1] * 3, "image_std": [1.0] * 3}


def nested(**changes: Any) -> Change:
    """An ``image_processor`` in processor_config.json: the checkpoint's own with changes."""

    def change(directory: Path) -> None:
        own = json.loads((directory / "preprocessor_config.json").read_text())
        edit("processor_config.json", image_processor={**own, **changes})(directory)

    return change


def null_nested(directory: Path) -> None:
    (directory / "processor_config.json").write_text('{"image_processor": null}')


PIXELS: dict[str, list[Change]] = {
    "preprocessor_config.json alone": [],
    "image_processor alone": [nested(**NESTED), remove("preprocessor_config.json")],
    "image_processor counts before preprocessor_config.json": [nested(**NESTED)],
    "an image_processor of another class and size": [
        nested(image_processor_type="SiglipImageProcessor", size={"height": 48, "width": 48})
    ],
    "an image_processor of null is none": [null_nested],
    "no image_processor_type: the model's own": [
        edit("preprocessor_config.json", image_processor_type=None)
    ],
    "no image_processor_type: config.json's": [
        edit("preprocessor_config.json", image_processor_type=None),
        edit("config.json", image_processor_type="SiglipImageProcessor"),
    ],
    "feature_extractor_type of transformers 4": [
        edit(
            "preprocessor_config.json",
            image_processor_type=None,
            feature_extractor_type="CLIPFeatureExtractor",
        )
    ],
    "image_processor_type counts before feature_extractor_type": [
        edit("preprocessor_config.json", feature_extractor_type="SiglipFeatureExtractor")
    ],
}


@pytest.mark.parametrize("trait", PIXELS)
def test_pixels_are_those_of_transformers(trait: str, files: Path) -> None:
    for change in PIXELS[trait]:
        change(files)
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    picture = Image.fromarray(noise)
    theirs = AutoImageProcessor.from_pretrained(files, backend="pil")
    expected = theirs(picture, return_tensors="np").pixel_values
    settings = image_settings(files, AutoConfig.from_pretrained(files))
    ours = pixel_values([picture], preprocess_spec(settings), IMAGE_LAYOUT)
    np.testing.assert_array_equal(ours, expected)


def test_settings_that_are_nowhere_are_refused(files: Path) -> None:
    config = AutoConfig.from_pretrained(files)
    (files / "preprocessor_config.json").unlink()
    with pytest.raises(LvlmError, match=r"has no preprocessor_config\.json and no image_processor"):
        image_settings(files, config)
    edit("processor_config.json", image_processor="CLIP")(files)
    with pytest.raises(LvlmError, match=r"processor_config\.json is str, an object is needed"):
        image_settings(files, config)


REFUSED: dict[str, tuple[list[Change], str]] = {
    "no fast tokenizer": (
        [remove("tokenizer.json")],
        r"has no tokenizer\.json; save its fast tokenizer",
    ),
    "no template": ([NO_JINJA], r"no chat template in .*; .* or add chat_template\.jinja"),
    "several templates and no default": (
        [NO_JINJA, write("additional_chat_templates/rag.jinja", "")],
        r"no chat template in .*; .* or add chat_template\.jinja",
    ),
    "an old template beside a folder of new ones": (
        [
            edit("chat_template.json", chat_template="x"),
            write("additional_chat_templates/rag.jinja", ""),
        ],
        r"does not read the processor in .*conflicting files.*; save it again",
    ),
    "a damaged file": (
        [write("processor_config.json", "{")],
        r"processor_config\.json cannot be read as JSON",
    ),
    "a damaged tokenizer": (
        [edit("tokenizer.json", model=None)],
        r"does not read the tokenizer in .*; save it again",
    ),
    "a special token that is a number": (
        [edit("tokenizer_config.json", bos_token=1)],
        r"does not read the tokenizer in .*Special token bos_token has to be either str",
    ),
}


@pytest.mark.parametrize("trait", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(trait: str, files: Path) -> None:
    changes, message = REFUSED[trait]
    for change in changes:
        change(files)
    with pytest.raises(LvlmError, match=message) as raised:
        prompt_files(files)
    assert "\n" not in str(raised.value)


def test_an_unusable_template_is_refused_before_the_export(
    tiny_llava: Path, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copyfile(tiny_llava / "checkpoint" / "model.safetensors", files / "model.safetensors")
    write("chat_template.jinja", "{% for m in messages %}{{ m.role }}{% endfor %}")(files)
    output = tmp_path_factory.mktemp("output") / "bundle"
    with pytest.raises(LvlmError, match=r"gives no prompt with a picture and a question"):
        build_tiny(files, output, 0.5)
    assert not list(output.parent.rglob("*.onnx"))
