"""Messages of a chat, checked, and with their content in the form that a chat template takes.

Templates of LVLMs take a message's content as a list of parts and put an image token where a part is
a picture. Templates of language models take one text, and print a list as Python shows it. No file
says which kind a template is, so it is tried: a short question about a picture is rendered both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.chat_template import one_line

# They stand in no template, trimming and another case do not change them, and where a list is printed
# as Python or JSON shows it, the line break is not one any more.
WORDS = "1234567890\n0987654321"

Render = Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True)
class ContentForms:
    """What a template takes as the content of a role's messages.

    Attributes:
        parts: A list of ``{"type": "image"}`` and ``{"type": "text", "text": …}``.
        text: A text, in which an image token stands for a picture.
        reason: What the template said where it takes neither.
    """

    parts: bool
    text: bool
    reason: str = ""

    @property
    def neither(self) -> bool:
        """Such a message cannot be said."""
        return not self.parts and not self.text


def forms_of_user(render: Render, image_token: str) -> ContentForms:
    """What a template takes from a user: a picture and words must come out, and nothing else of it."""
    parts = [{"type": "image"}, {"type": "text", "text": WORDS}]
    text = f"{image_token}\n{WORDS}"

    def said(content: Any) -> bool:
        prompt = render([{"role": "user", "content": content}])
        return prompt.count(image_token) == 1 and WORDS in prompt

    return _forms(said, parts, text)


def forms_of_system(render: Render, user: ContentForms, image_token: str) -> ContentForms:
    """What a template takes as a system message; neither where it leaves such a message out."""
    question = in_form({"role": "user", "content": "?"}, user, image_token)

    def said(content: Any) -> bool:
        return WORDS in render([{"role": "system", "content": content}, question])

    return _forms(said, [{"type": "text", "text": WORDS}], WORDS)


def in_form(message: Mapping[str, Any], forms: ContentForms, image_token: str) -> dict[str, Any]:
    """A checked message with its content as the template takes it.

    In a text a picture is an image token on a line of its own, as LLaVA's authors train with and as
    vLLM does. A content that the template takes as it is stays so.
    """
    content = message["content"]
    if isinstance(content, str) and not forms.text:
        content = [{"type": "text", "text": content}]
    elif not isinstance(content, str) and not forms.parts:
        content = "\n".join(part.get("text", image_token) for part in content)
    return {"role": message["role"], "content": content}


def checked(message: Mapping[str, Any], image_token: str) -> dict[str, Any]:
    """A message of nothing but text and placeholders.

    Raises:
        LvlmError: A message of another form, or with the image token in its text.
    """
    role, content = message.get("role"), message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(role, str) or not isinstance(parts, Sequence):
        raise LvlmError(
            f"a chat message has role {role!r} and content of type {type(content).__name__}; "
            "give a role and a text or a list of parts"
        )
    plain: list[dict[str, str]] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            plain.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            _refuse_image_token(part["text"], image_token)
            plain.append({"type": "text", "text": part["text"]})
        else:
            raise LvlmError(
                f"a chat message has a part of type {kind!r}; give 'image', or 'text' with a text"
            )
    return {"role": role, "content": content if isinstance(content, str) else plain}


def _forms(said: Callable[[Any], bool], parts: Any, text: str) -> ContentForms:
    """Try both; ``said`` raises ``LvlmError`` where the template refuses a content."""
    taken, reason = [], ""
    for content in (parts, text):
        try:
            taken.append(said(content))
        except LvlmError as error:
            taken.append(False)
            reason = one_line(error.__cause__ or error)
    return ContentForms(taken[0], taken[1], reason)


def _refuse_image_token(text: str, image_token: str) -> None:
    if image_token in text:
        raise LvlmError(
            f"the prompt contains {image_token!r}, which stands for a picture in this model; leave"
            " it out: pictures are put in front of the prompt without it"
        )
