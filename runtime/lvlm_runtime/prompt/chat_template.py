"""Chat templates: where a checkpoint keeps its own, and the sandbox that it runs in.

A template comes with the checkpoint and is foreign code: it runs in a sandbox with limits, with the
options and helpers of transformers 5.23 (``utils/chat_template_utils.py``) and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils

from lvlm_profiles import readers, records
from lvlm_profiles.readers import UnreadableError
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.sandbox import LimitedEnvironment

# Where a chat template may stand, in the order of transformers; all but the last are its own files.
TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja")


def find_template(
    files: Mapping[str, bytes],
    tokenizer: Mapping[str, Any],
    processor: Mapping[str, Any],
    where: str | Path,
) -> str:
    """The chat template of a directory, from the places and in the order of transformers.

    Args:
        files: Content of ``chat_template.json`` (old) and ``chat_template.jinja``, if any.
        tokenizer: Content of ``tokenizer_config.json``, the last place looked at.
        processor: Content of ``processor_config.json``, the first.
        where: The directory, for messages.

    Raises:
        LvlmError: None of the places has a template, or several and none named "default".
    """
    old, own = TEMPLATE_FILES
    template = processor.get("chat_template")
    if template is None and old in files:
        template = parse_object(files[old], f"{where}/{old}").get("chat_template")
    if template is None and own in files:
        try:
            template = readers.decode(files[own])
        except UnreadableError as error:
            raise LvlmError(f"{where}/{own} is not UTF-8 text ({error}); export it again") from None
    if template is None:
        template = tokenizer.get("chat_template")
    return default_template(template, where)


def default_template(template: Any, where: str | Path) -> str:
    """The template that counts: the only one, or of several the one named "default".

    Args:
        template: A text, or templates by name as an object or as a list of objects.
        where: The directory, for messages.

    Raises:
        LvlmError: There is none, or several and none named "default", or a list holds something else.
    """
    if isinstance(template, list):
        for entry in template:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                raise LvlmError(
                    f"chat_template in {where} lists {shown(entry)}, objects with name and template are"
                    " needed; save the processor again"
                )
        template = {entry["name"]: entry.get("template") for entry in template}
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise LvlmError(
            f"no chat template in {where}: a prompt cannot be put into the model's format; "
            "export from a checkpoint that has one, or add chat_template.jinja"
        )
    return template


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template in the sandbox.

    Raises:
        LvlmError: The template is not valid jinja2, or too much to compile.
    """
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    try:
        return environment.from_string(source)
    except Exception as error:  # deep nesting raises errors of Python's own compiler
        raise LvlmError(
            f"the checkpoint's chat template is not valid: {one_line(error)}; check "
            "chat_template.jinja"
        ) from error


def parse_object(content: bytes, where: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        content: Of the file.
        where: Its name, for messages.

    Raises:
        LvlmError: It is anything but a JSON object.
    """
    parsed = records.parse(content, where, "export it again", constants=True, repeated=True)
    if not isinstance(parsed, dict):
        raise LvlmError(f"{where} holds no JSON object; export it again")
    return parsed


def shown(value: Any) -> str:
    """A wrong value in one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """An error's own message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks an assistant's words for training; here its body is only shown."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as a set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """``dict`` for templates: an instance, so that they cannot reach the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(jinja2.utils.Namespace):
    """``namespace`` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # "self" may be a name
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
