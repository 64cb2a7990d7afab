"""What a checkpoint's tokenizer, chat template and image processor are, as transformers reads them.

A setting may stand in two files that do not agree: an image processor that transformers 4 left
beside one of transformers 5, a chat template in four places, an image token that only
``tokenizer_config.json`` adds. Which one counts is asked of transformers itself and not decided
here, and a bundle gets the result instead of the files, so that there is nothing left in it to be
read in another order.

Source: transformers 5.23, ``ProcessorMixin.get_processor_dict``,
``ImageProcessingMixin.get_image_processor_dict``, ``AutoImageProcessor`` and ``AutoTokenizer``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_export.checkpoint.files import one_reason, read_json
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.chat_template import default_template, shown
from lvlm_runtime.prompt.encoder import image_token_of
from lvlm_runtime.prompt.panics import is_panic

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
# The library tokenizers writes a vocabulary id by id, up to the highest one.
_HIGHEST_ID = (1 << 24) - 1


def image_settings(directory: Path, config: PretrainedConfig) -> dict[str, Any]:
    """The settings of the image processor that ``AutoImageProcessor`` makes.

    ``image_processor`` in ``processor_config.json`` counts before ``preprocessor_config.json``.

    Args:
        directory: The checkpoint.
        config: Its configuration, which names the processor where the settings do not.

    Raises:
        LvlmError: There are none, or a file is damaged.
    """
    _check_json(directory, PROCESSOR, PREPROCESSOR)
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(directory)
    except OSError:
        raise LvlmError(f"{directory} has no {PREPROCESSOR} and no image_processor") from None
    if not isinstance(settings, dict):
        raise LvlmError(
            f"image_processor in {directory / PROCESSOR} is {type(settings).__name__}, an object is"
            " needed; save the processor again"
        )
    if not settings.get("image_processor_type") and not settings.get("feature_extractor_type"):
        known = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type, {}).get("pil")
        kind = getattr(config, "image_processor_type", None) or known
        settings = {**settings, "image_processor_type": kind}
    return settings


def prompt_files(
    directory: Path, template: str | None = None, placeholder: str | None = None
) -> dict[str, bytes]:
    """Tokenizer and chat template in the form that the runtime reads, by file name.

    ``tokenizer.json`` is what ``AutoTokenizer`` made of all the checkpoint's files,
    ``tokenizer_config.json`` holds the special tokens that a template may name,
    ``processor_config.json`` the image token and ``chat_template.jinja`` the template that counts.

    Args:
        directory: The checkpoint.
        template: As ``Family.template``: it counts where the checkpoint has none, and what it does
            not write, such as a start token in front, the tokenizer adds no more.
        placeholder: As ``Family.placeholder``: in the template the token of that name becomes the one
            that stands for a picture.

    Raises:
        LvlmError: No fast tokenizer, no chat template, or a file is damaged.
    """
    if not (directory / "tokenizer.json").exists():
        raise LvlmError(
            f"{directory} has no tokenizer.json; save its fast tokenizer there"
            " (AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    settings = processor_settings(directory)
    tokenizer = load_tokenizer(directory)
    source = settings.get("chat_template")
    source = tokenizer.chat_template if source is None else source
    if template is not None:
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
        source = source or template
    chat_template = default_template(source, directory)
    named = (getattr(tokenizer, name, None) for name in ("image_token", "context_image_token"))
    token = next(filter(None, named), None) or image_token_of(settings, directory)
    if placeholder is not None:
        chat_template = chat_template.replace(
            _named_token(tokenizer, placeholder, directory), token
        )
    return {
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(tokenizer.special_tokens_map),
        "processor_config.json": _json({"image_token": str(token)}),
        "chat_template.jinja": chat_template.encode(),
    }


def _named_token(tokenizer: Any, name: str, directory: Path) -> str:
    """The text of a named special token; LvlmError where the tokenizer has none of that name."""
    token = getattr(tokenizer, name, None)
    if not isinstance(token, str) or not token:
        raise LvlmError(
            f"the tokenizer in {directory} names no {name}, which its chat template writes for a"
            " picture; add it to tokenizer_config.json"
        )
    return token


def processor_settings(directory: Path) -> dict[str, Any]:
    """What ``processor_config.json`` and the files of chat templates say, as a processor reads them.

    Raises:
        LvlmError: A file is damaged, or two exclude each other.
    """
    _check_json(directory, PROCESSOR, "chat_template.json")
    from transformers import ProcessorMixin

    with _one_line(directory, "processor"):
        settings, _ = ProcessorMixin.get_processor_dict(directory)
    return dict(settings)


def load_tokenizer(directory: Path) -> Any:
    """The checkpoint's tokenizer as ``AutoTokenizer`` makes it.

    Raises:
        LvlmError: transformers refuses it, it is none of the library ``tokenizers``, or an id is
            absurd.
    """
    _check_json(
        directory,
        *("tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json"),
    )
    from transformers import AutoTokenizer

    with _one_line(directory, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise LvlmError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which is not a fast one;"
            " save it as tokenizer.json"
        )
    name, highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", 0))
    if highest > _HIGHEST_ID:
        raise LvlmError(
            f"the tokenizer in {directory} gives {shown(name)} the id {highest}, at most"
            f" {_HIGHEST_ID} is read; correct tokenizer.json"
        )
    return tokenizer


@contextmanager
def _one_line(directory: Path, what: str) -> Iterator[None]:
    """Transformers' own words, in one line, for what it refuses; its notes stay off the screen."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except BaseException as error:  # it has many error types, and the library tokenizers panics too
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise LvlmError(
            f"transformers does not read the {what} in {directory}: {one_reason(error)}; save it"
            " again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _check_json(directory: Path, *names: str) -> None:
    """LvlmError that names the file, for one of these that is there and holds no JSON object."""
    for name in names:
        if (directory / name).exists():
            read_json(directory / name)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
