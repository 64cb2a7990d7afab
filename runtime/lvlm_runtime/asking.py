"""What a request may say, as keywords, and what it comes to."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from lvlm_runtime.answering import AnswerOptions
from lvlm_runtime.behind import RememberedPicture
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.openai import read_openai
from lvlm_runtime.prompt.sampling import LogitsProcessor, SamplingOptions
from lvlm_runtime.prompt.stops import stop_texts

# One picture or several.
Pictures = Picture | RememberedPicture | Sequence[Picture | RememberedPicture]
# The fields of ``SamplingOptions``, each a keyword of its own too.
CHOOSING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "rules")


class AnswerKeywords(TypedDict, total=False):
    """How an answer is made; each may be left out.

    Attributes:
        max_new_tokens: Longest answer; 128.
        sampling: How tokens are chosen; greedy under the checkpoint's rules.
        temperature: A field of ``SamplingOptions`` by itself, as are the next five; in place of
            ``sampling``.
        top_k: Likewise.
        top_p: Likewise.
        repetition_penalty: Likewise.
        seed: Likewise.
        rules: Likewise.
        stop: Texts that end the answer, one or several; they are not part of it.
        logits_processor: Called with the ids so far and the scores ``[V]`` (float32) of the next token,
            behind the checkpoint's rules and before the temperature, as transformers does; returns the
            scores. One or several.
        recorder: Takes the timing of every graph call.
        ignore_stop: Answer exactly ``max_new_tokens`` tokens, for measurements.
        speculate: Tokens that are drafted from prompt and answer and verified in one call of the
            decoder; 0 for none. The answer is the same.
    """

    max_new_tokens: int
    sampling: SamplingOptions
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    seed: int | None
    rules: bool
    stop: str | Sequence[str]
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor]
    recorder: Recorder | None
    ignore_stop: bool
    speculate: int


class AskKeywords(AnswerKeywords, total=False):
    """What else a request may say.

    Attributes:
        messages: A chat in OpenAI's form, in place of a prompt: ``{"role": …, "content": …}``, the
            content a text or a list of ``{"type": "text", "text": …}`` and ``{"type": "image_url",
            "image_url": {"url": …}}``. A URL is a data URL or a path, or anything else that
            ``images`` takes.
        system: A system message, where the template takes one.
        ttft: Time to the first token, as ``"300ms"``; takes the largest ratio that met it in the
            last ``lvlm-export profile`` on this machine. In place of ``ratio``.
        prefill_chunk: Most rows of the prompt in one call of a graph; None for all at once.
    """

    messages: Sequence[Mapping[str, Any]]
    system: str | None
    ttft: str | None
    prefill_chunk: int | None


class BatchQuestion(AskKeywords, total=False):
    """One request of several: what ``generate`` takes, by name.

    Attributes:
        prompt: As of ``Session.generate``, as are the others.
        images: Likewise.
        ratio: Likewise.
    """

    prompt: str | None
    images: Pictures
    ratio: float | None


@dataclass(frozen=True)
class Asked:
    """A request, whichever way it was said.

    Attributes:
        messages: The chat, ``encode_messages``'s; None where there are ``ids``.
        ids: The prompt as tokens, one placeholder id per picture; None where there is a chat.
        question: Text that a projector reads, or its ids.
        images: One per placeholder.
        ratio: One of the bundle's.
        options: How the answer is made.
        chunk: Most rows of the prompt in one call of a graph; None for all.
        recorder: Takes the timings.
    """

    messages: Sequence[Mapping[str, Any]] | None
    ids: Sequence[int] | None
    question: str | Sequence[int] | None
    images: tuple[Picture | RememberedPicture, ...]
    ratio: float
    options: AnswerOptions
    chunk: int | None
    recorder: Recorder


def answer_options(asking: AnswerKeywords) -> AnswerOptions:
    """The part of the keywords that says how an answer is made.

    Raises:
        UsageError: A value is outside its range, or two exclude each other.
    """
    words: dict[str, Any] = {name: asking[name] for name in CHOOSING if name in asking}  # type: ignore[literal-required]
    sampling = asking.get("sampling")
    if words and sampling is not None:
        raise UsageError(f"sampling and {next(iter(words))} exclude each other; give one of them")
    processors = asking.get("logits_processor", ())
    return AnswerOptions(
        asking.get("max_new_tokens", 128),
        SamplingOptions(**words) if sampling is None else sampling,
        asking.get("ignore_stop", False),
        asking.get("speculate", 0),
        stop_texts(asking.get("stop", ())),
        (processors,) if callable(processors) else tuple(processors),
    )


def recorder_of(asking: AnswerKeywords) -> Recorder:
    """That of the keywords, or one of its own."""
    given = asking.get("recorder")
    return Recorder() if given is None else given


def check_keywords(asking: Mapping[str, object], known: type[Any]) -> None:
    """Refuse what is no keyword, as Python does where they are listed one by one.

    Args:
        asking: By name.
        known: The ``TypedDict`` that lists them, its bases' included.

    Raises:
        TypeError: A name is not one of them.
    """
    names = [*known.__required_keys__, *known.__optional_keys__]
    for name in asking:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(names))}"
            raise TypeError(f"unexpected keyword argument {name!r}; {hint}")


def several(images: Pictures) -> tuple[Picture | RememberedPicture, ...]:
    """One picture or several, as a tuple."""
    if isinstance(
        images, (str, bytes, io.BytesIO, Path, Image.Image, np.ndarray, RememberedPicture)
    ):
        return (images,)
    return tuple(images)


def asked_chat(
    prompt: str | None, images: Pictures, asking: AskKeywords
) -> tuple[list[dict[str, Any]], str, tuple[Picture | RememberedPicture, ...]]:
    """A chat as ``encode_messages`` takes it, the question in it, and its pictures.

    Raises:
        UsageError: Nothing is asked, or it is asked twice.
    """
    messages, pictures = asking.get("messages"), several(images)
    if messages is None:
        if prompt is None:
            raise UsageError("nothing is asked; give a prompt, or messages=[…]")
        return user_turn(prompt, len(pictures), asking.get("system")), prompt, pictures
    given = {"a prompt": prompt, "images": pictures or None, "system": asking.get("system")}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"messages and {name} exclude each other; say it in messages")
    chat = read_openai(messages)
    return chat.messages, chat.question, tuple(chat.pictures)


def user_turn(prompt: str, images: int, system: str | None) -> list[dict[str, Any]]:
    """A chat of one question behind its pictures."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        text = [{"type": "text", "text": system}]
        messages.insert(0, {"role": "system", "content": text})
    return messages
