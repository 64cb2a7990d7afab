"""Chat templates: where a checkpoint keeps its own, and the sandbox that it runs in.

A template comes with the checkpoint and is foreign code: it runs in jinja2's immutable sandbox,
with the options and helpers of transformers 5.23 (``utils/chat_template_utils.py``) and no others.
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
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lvlm_runtime.errors import LvlmError


def find_template(
    directory: Path, tokenizer: Mapping[str, Any], processor: Mapping[str, Any]
) -> str:
    """The chat template of a directory, from the places and in the order of transformers.

    Args:
        directory: Place of a ``chat_template.json`` (old) or ``chat_template.jinja``, if any.
        tokenizer: Content of ``tokenizer_config.json``, the last place looked at.
        processor: Content of ``processor_config.json``, the first.

    Raises:
        LvlmError: None of the places has a template, or several and none named "default".
    """
    template = processor.get("chat_template")
    if template is None:
        template = read_json(directory / "chat_template.json", required=False).get("chat_template")
    path = directory / "chat_template.jinja"
    if template is None and path.is_file():
        template = path.read_text(encoding="utf-8")
    if template is None:
        template = tokenizer.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise LvlmError(
            f"no chat template in {directory}: a prompt cannot be put into the model's format; "
            "export from a checkpoint that has one, or add chat_template.jinja"
        )
    return template


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template in the sandbox.

    Raises:
        LvlmError: The template is not valid jinja2.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise LvlmError(
            f"the checkpoint's chat template is not valid: {one_line(error)}; check "
            "chat_template.jinja"
        ) from error


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing and not required.

    Raises:
        LvlmError: A required file is missing, or a file holds anything but a JSON object.
    """
    if not path.is_file():
        if required:
            raise LvlmError(f"no such file: {path}; give the directory of a bundle or checkpoint")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LvlmError(f"{path} is not JSON: {one_line(error)}; export it again") from error
    if not isinstance(content, dict):
        raise LvlmError(f"{path} holds no JSON object; export it again")
    return content


def one_line(error: Exception) -> str:
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
