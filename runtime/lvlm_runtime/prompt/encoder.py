"""From a user's words to token ids and back: chat, tokenizer, streaming detokeniser.

Source: transformers 5.23, ``ProcessorMixin.apply_chat_template`` and ``TokenizersBackend``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.chat_template import (
    TEMPLATE_FILES,
    compile_template,
    find_template,
    one_line,
    parse_object,
    shown,
)
from lvlm_runtime.prompt.messages import (
    ContentForms,
    checked,
    forms_of_system,
    forms_of_user,
    in_form,
)
from lvlm_runtime.prompt.panics import named

# What is read of a directory; the last two are in older bundles and in checkpoints.
PROMPT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "processor_config.json"),
    *TEMPLATE_FILES,
)
# Of a tokenizer that was read and fails at a text.
DAMAGED = "tokenizer.json is damaged or of another version, save or copy it again"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes chats for one checkpoint; build it with ``open``.

    Attributes:
        tokenizer: The checkpoint's tokenizer.
        template: The compiled chat template.
        special_tokens: What the template may use, as "bos_token": "<s>".
        image_token: Text of the token that stands for a picture.
        image_token_id: Its id; the caller puts the visual tokens in its place.
        user: What the template takes as the content of a message.
        system: The same of a system message.
        marks: Text before a picture's token and behind it, as ``TileLayout`` has it; the template
            does not say it.
    """

    tokenizer: Tokenizer
    template: jinja2.Template
    special_tokens: Mapping[str, str]
    image_token: str
    image_token_id: int
    user: ContentForms
    system: ContentForms
    marks: tuple[str, ...] = ()

    @classmethod
    def open(cls, directory: str | Path) -> PromptEncoder:
        """As ``read``, for those of ``PROMPT_FILES`` that lie in a directory."""
        directory = Path(directory)
        paths = {name: directory / name for name in PROMPT_FILES}
        files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        return cls.read(files, directory)

    @classmethod
    def read(cls, files: Mapping[str, bytes], where: str | Path) -> PromptEncoder:
        """Make an encoder of the files of a tokenizer and a chat template.

        Args:
            files: Content by name, of ``PROMPT_FILES``.
            where: The directory that they are from, for messages.

        Raises:
            LvlmError: A file is missing or damaged, there is no chat template or one that cannot
                say a question about a picture, or the tokenizer has no image token.
        """
        for name in ("tokenizer_config.json", "tokenizer.json"):
            if name not in files:
                raise LvlmError(
                    f"no such file: {where}/{name}; give the directory of a bundle or checkpoint"
                )
        config, processor = (
            parse_object(files.get(name, b"{}"), f"{where}/{name}")
            for name in ("tokenizer_config.json", "processor_config.json")
        )
        special = _special_tokens(config)
        image_token = special.get("image_token") or image_token_of(processor, where)
        tokenizer = _read_tokenizer(files["tokenizer.json"], f"{where}/tokenizer.json")
        image_token_id = tokenizer.token_to_id(image_token)
        if image_token_id is None:
            raise LvlmError(
                f"the tokenizer in {where} has no image token {image_token!r}: this is not an "
                "LVLM's tokenizer; export it from the LVLM checkpoint"
            )
        template = compile_template(find_template(files, config, processor, where))

        def render(messages: list[dict[str, Any]]) -> str:
            return _render(template, special, messages)

        user = forms_of_user(render, image_token)
        if user.neither:
            raise LvlmError(
                f"the chat template in {where} gives no prompt with a picture and a question,"
                f" neither of a list of parts nor of a text with {image_token!r} in it"
                f"{f' ({user.reason})' if user.reason else ''}; add the LVLM's own"
                " chat_template.jinja"
            )
        return cls(
            tokenizer=tokenizer,
            template=template,
            special_tokens=special,
            image_token=image_token,
            image_token_id=image_token_id,
            user=user,
            system=forms_of_system(render, user, image_token),
        )

    def encode(self, prompt: str, n_images: int, system: str | None = None) -> list[int]:
        """Token ids of one user turn: pictures, then text, then the start of the answer.

        Args:
            prompt: The user's question.
            n_images: Pictures in front of it; each becomes exactly one image token id.
            system: Instruction in front of the user's turn, if any.

        Raises:
            LvlmError: The prompt contains the image token, or the template fails.
        """
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        if system is not None:
            text = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": text})
        return self.encode_messages(messages)

    def question(self, prompt: str) -> list[int]:
        """Token ids of a question alone, without chat or picture, as trained projectors read it."""
        return self._tokenize(prompt)

    def encode_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a chat, with the start of the next answer.

        Equal to what ``processor.apply_chat_template(tokenize=True, add_generation_prompt=True)``
        gives, but with one image token id per picture.

        Args:
            messages: ``{"role": ..., "content": ...}``, the content a text or a list of
                ``{"type": "image"}`` and ``{"type": "text", "text": ...}``.

        Raises:
            LvlmError: A message of another form or with the image token in its text, or the
                template fails or loses a picture.
        """
        plain = [checked(message, self.image_token) for message in messages]
        n_images = sum(
            part["type"] == "image"
            for message in plain
            for part in message["content"]
            if isinstance(part, dict)
        )
        said = [in_form(each, self._forms(each["role"]), self.image_token) for each in plain]
        text = _render(self.template, self.special_tokens, said)
        if self.marks:
            text = text.replace(self.image_token, self.image_token.join(self.marks))
        ids = self._tokenize(text)
        if ids.count(self.image_token_id) != n_images:
            raise LvlmError(
                f"the chat template put {ids.count(self.image_token_id)} image tokens into a chat "
                f"with {n_images} pictures, one each is needed: it does not support such a chat; "
                "give fewer pictures, or check chat_template.jinja"
            )
        return ids

    def decoder(self) -> StreamDecoder:
        """A detokeniser for one answer."""
        return StreamDecoder(self.tokenizer)

    def _forms(self, role: str) -> ContentForms:
        if role != "system":
            return self.user
        if self.system.neither:
            raise LvlmError(
                "this model's chat template leaves system messages out"
                f"{f' ({self.system.reason})' if self.system.reason else ''}; put the instruction"
                " in front of the question"
            )
        return self.system

    def _tokenize(self, text: str) -> list[int]:
        """Ids of a rendered chat; the tokenizer adds its special tokens if the chat lacks them.

        ``add_bos_token`` and ``add_eos_token`` of ``tokenizer_config.json`` have no effect, since
        transformers drops them where there is a ``tokenizer.json``.
        """
        bos = self.special_tokens.get("bos_token")
        has_bos = bos is not None and text.startswith(bos)
        with named("the tokenizer does not take this text", DAMAGED):
            return list(self.tokenizer.encode(text, add_special_tokens=not has_bos).ids)


class StreamDecoder:
    """Turns token ids into text as they come; all pieces together are the whole answer's text.

    A piece never ends inside a UTF-8 character. Byte tokens (``<0x0A>``) wait for the token after
    them, since a run of them is decoded as a whole; ``flush`` gives what still waits. The
    DecodeStream of ``tokenizers`` fails on byte runs that are not UTF-8 and loses their text, so it
    is not used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start an answer."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._window: list[int] = []
        self._shown = 0  # tokens of the window whose text has been given out

    def push(self, token_id: int) -> str:
        """The text that is certain now, often of this token alone; may be empty.

        Special tokens have no text, nor have ids that a model has above its tokenizer's.
        """
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return ""
        self._window.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._pending()
        # A replacement character at the end is most often a character that is not complete yet.
        return "" if text.endswith("\ufffd") else self._give(text)

    def flush(self) -> str:
        """The rest of the answer, with a replacement character for every damaged one."""
        return self._give(self._pending())

    def _pending(self) -> str:
        # The shown tokens are decoded again, since a decoder treats a text's first token apart.
        with named("the tokenizer has no text for this answer", DAMAGED):
            before = self._tokenizer.decode(self._window[: self._shown], skip_special_tokens=True)
            return self._tokenizer.decode(self._window, skip_special_tokens=True)[len(before) :]

    def _give(self, text: str) -> str:
        if text:
            self._window = self._window[self._shown :]
            self._shown = len(self._window)
        return text


def _render(
    template: jinja2.Template, special_tokens: Mapping[str, str], messages: list[dict[str, Any]]
) -> str:
    """A chat as one text."""
    try:
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except Exception as error:  # a template is foreign code and may raise anything
        raise LvlmError(
            f"the checkpoint's chat template refused this chat: {one_line(error)}; change the "
            "messages, or check chat_template.jinja"
        ) from error


def _read_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, without the truncation and padding saved with it."""
    with named(f"{where} is not a tokenizer", "export it again"):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def image_token_of(processor: Mapping[str, Any], where: str | Path) -> str:
    """The image token that a ``processor_config.json`` names, for a tokenizer that names none.

    Args:
        processor: Content of the file; a token is a text or an object with its ``content``.
        where: The directory, for messages.

    Raises:
        LvlmError: It is something else.

    Example:
        >>> image_token_of({"image_token": {"content": "<picture>"}}, "model"), image_token_of({}, "")
        ('<picture>', '<image>')
    """
    token = processor.get("image_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    if token is None or text == "":
        return "<image>"
    if not isinstance(text, str):
        raise LvlmError(
            f"image_token in {where}/processor_config.json is {shown(token)}, a text is needed;"
            " correct it"
        )
    return text


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens of a ``tokenizer_config.json``, as text."""
    extra = config.get("extra_special_tokens")
    named = {**config, **extra} if isinstance(extra, Mapping) else config
    tokens = {}
    for key, value in named.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens
