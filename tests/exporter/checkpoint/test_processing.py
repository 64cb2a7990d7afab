"""Files of a processor that cannot be read; the trait table says which of several counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from helpers import build_tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.processing import image_settings, prompt_files
from lvlm_runtime.errors import LvlmError
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


def write(name: str, text: str) -> Change:
    def change(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)

    return change


def remove(name: str) -> Change:
    return lambda directory: (directory / name).unlink()


NO_JINJA = remove("chat_template.jinja")
# A tokenizer's own comes before the processor's.
NO_IMAGE_TOKEN = edit("tokenizer_config.json", image_token=None, extra_special_tokens=None)


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
    "a list of templates with something else in it": (
        [edit("processor_config.json", chat_template=["x"])],
        r"chat_template in .* lists 'x', objects with name and template are needed; save the proc",
    ),
    "an image token that is a number": (
        [NO_IMAGE_TOKEN, edit("processor_config.json", image_token=5)],
        r"image_token in .*processor_config\.json is 5, a text is needed; correct it",
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


def test_an_image_token_may_be_an_object(files: Path) -> None:
    """As a tokenizer writes its own; and no token is the usual one."""
    token = {"__type": "AddedToken", "content": "<image>", "special": True}
    NO_IMAGE_TOKEN(files)
    edit("processor_config.json", image_token=token)(files)
    assert json.loads(prompt_files(files)["processor_config.json"]) == {"image_token": "<image>"}
    assert PromptEncoder.open(files).image_token == "<image>"


def test_an_entry_that_stands_twice_is_read_as_transformers_reads_it(files: Path) -> None:
    text = (files / "config.json").read_text().replace("{", '{"model_type": "other",', 1)
    (files / "config.json").write_text(text)
    assert Checkpoint.open(files).config.model_type == "llava"
    assert AutoConfig.from_pretrained(files).model_type == "llava"


def test_an_unusable_template_is_refused_before_the_export(
    tiny_llava: Path, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copyfile(tiny_llava / "checkpoint" / "model.safetensors", files / "model.safetensors")
    write("chat_template.jinja", "{% for m in messages %}{{ m.role }}{% endfor %}")(files)
    output = tmp_path_factory.mktemp("output") / "bundle"
    with pytest.raises(LvlmError, match=r"gives no prompt with a picture and a question"):
        build_tiny(files, output, 0.5)
    assert not list(output.parent.rglob("*.onnx"))
