"""Messages in the form of OpenAI's chat API: what is said, and the pictures in it.

Source: the API reference of ``chat.completions``, content parts ``text`` and ``image_url``. The form of
transformers, ``{"type": "image", "image": …}``, is taken too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_runtime.errors import UsageError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class OpenAIChat:
    """A chat as a template takes it, and its pictures.

    Attributes:
        messages: ``encode_messages``'s, with a placeholder for every picture.
        pictures: In the order of the placeholders, as they were given.
        question: Text of the last message.
    """

    messages: list[dict[str, Any]]
    pictures: list[Any]
    question: str


def read_openai(messages: Sequence[Mapping[str, Any]]) -> OpenAIChat:
    """Take pictures out of messages.

    ``detail`` of a picture is ignored: a ratio takes its place.

    Args:
        messages: ``{"role": …, "content": …}``, the content a text or a list of parts: ``text``, or
            ``image_url`` with a data URL, a path, or anything else that is a picture.

    Raises:
        UsageError: A message or part of another form, or a chat that does not end with a user.

    Example:
        >>> parts = [{"type": "text", "text": "What is it?"},
        ...          {"type": "image_url", "image_url": {"url": "cat.jpg"}}]
        >>> chat = read_openai([{"role": "user", "content": parts}])
        >>> chat.pictures, chat.question
        (['cat.jpg'], 'What is it?')
    """
    if isinstance(messages, (str, Mapping)) or not messages:
        raise UsageError(
            "messages are a list of {'role': …, 'content': …}, with one message or more; put one"
            " question into prompt"
        )
    pictures: list[Any] = []
    read = [_message(message, pictures) for message in messages]
    last = read[-1]
    if last["role"] != "user":
        raise UsageError(
            f"the last message has role {last['role']!r}; an answer follows one with role 'user'"
        )
    content = last["content"]
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    return OpenAIChat(read, pictures, "\n".join(text for text in texts if text is not None))


def _message(message: Mapping[str, Any], pictures: list[Any]) -> dict[str, Any]:
    """One message; what it shows joins ``pictures``."""
    if not isinstance(message, Mapping):
        raise UsageError(
            f"a message is a {type(message).__name__}; give {{'role': …, 'content': …}}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UsageError(f"a message has role {role!r}; give one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, Sequence):
        raise UsageError(
            f"the content of a message is a {type(content).__name__}; give a text or a list of parts"
        )
    return {"role": role, "content": [_part(part, role, pictures) for part in content]}


def _part(part: Any, role: str, pictures: list[Any]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    shown = part.get(kind) if kind in ("image_url", "image") else None
    if kind == "image_url" and isinstance(shown, Mapping):
        shown = shown.get("url")
    if shown is None:
        raise UsageError(
            f"a message has a part of type {kind!r}; give {{'type': 'text', 'text': …}} or"
            " {'type': 'image_url', 'image_url': {'url': …}}"
        )
    if role == "system":
        raise UsageError("a system message has a picture; show it in a message with role 'user'")
    pictures.append(shown)
    return {"type": "image"}
