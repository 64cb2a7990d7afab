"""From a body to what a session is asked: checked before it waits, pictures included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lvlm_runtime.asking import AskKeywords, answer_options
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.picture import opened, picture_size
from lvlm_runtime.prompt.openai import read_openai
from lvlm_runtime.serve.catalogue import Catalogue
from lvlm_runtime.serve.forms import ChatBody, ChatMessage, PicturePart
from lvlm_runtime.serve.job import BudgetWish
from lvlm_runtime.serve.limits import ServingLimits
from lvlm_runtime.serve.patches import patch_grid
from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.served import ServedBundle
from lvlm_runtime.serve.size import AskedSize

# Scores divided by less leave float32.
COLDEST = 1e-3


@dataclass(frozen=True)
class ReadRequest:
    """A request that may join the line.

    Attributes:
        bundle: Of which it asks.
        asking: Keywords of ``Session.stream``.
        wish: Its budget.
        size: Its size.
        top_logprobs: Most probable tokens to tell with each; None for no logprobs.
        shown: The picture whose patches are told; None to tell of none.
    """

    bundle: ServedBundle
    asking: AskKeywords
    wish: BudgetWish
    size: AskedSize
    top_logprobs: int | None
    shown: bytes | None = None


def read_request(body: ChatBody, catalogue: Catalogue, limits: ServingLimits) -> ReadRequest:
    """Check a request as far as no graph is needed.

    Args:
        body: What was sent.
        catalogue: What is served.
        limits: What one request may take.

    Raises:
        RefusedError: Says which field is wrong.
    """
    bundle, named = catalogue.find(body.model)
    wish = budget_wish(body, bundle, named)
    asking = keywords(body, limits)
    try:
        answer_options(asking)
        messages = [_message(each, number) for number, each in enumerate(body.messages)]
        chat = read_openai(messages)
        check_pictures(chat.pictures, limits)
        layout = bundle.session.layout(chat.pictures)
        ids = bundle.session.encoder.encode_messages(chat.messages)
    except RefusedError:
        raise
    except LvlmError as error:
        raise RefusedError(str(error), 400, "invalid_value") from error
    asking["messages"] = messages
    pictures = len(chat.pictures)
    taken = None if layout is None else layout.name
    size = AskedSize(pictures, len(ids) - pictures, asking["max_new_tokens"], taken)
    check_size(size, bundle, wish, limits)
    shown = shown_patches(chat.pictures, bundle) if body.patches else None
    return ReadRequest(bundle, asking, wish, size, logprobs(body), shown)


def budget_wish(body: ChatBody, bundle: ServedBundle, named: float | None) -> BudgetWish:
    """The ratio or the goal that a request names.

    Args:
        body: The request.
        bundle: Of which it asks.
        named: The ratio in the model's id.

    Raises:
        RefusedError: Two of them, or a ratio that the bundle does not have.
    """
    said = [each for each in (named, body.ratio, body.ttft_ms) if each is not None]
    if len(said) > 1:
        raise RefusedError(
            "a ratio in the model's id, ratio and ttft_ms exclude each other; give one of them",
            400,
            "invalid_value",
            "ratio",
        )
    wanted = named if body.ratio is None else body.ratio
    if wanted is None:
        return BudgetWish(None, body.ttft_ms)
    ratio = next((each for each in bundle.ratios if abs(each - wanted) < 1e-9), None)
    if ratio is None:
        known = ", ".join(f"{each:g}" for each in bundle.ratios)
        raise RefusedError(
            f"{bundle.name} has no ratio {wanted:g}; it has {known}", 400, "invalid_value", "ratio"
        )
    return BudgetWish(ratio)


def keywords(body: ChatBody, limits: ServingLimits) -> AskKeywords:
    """How the answer is made; messages come later.

    Raises:
        RefusedError: An answer longer than the server gives, two lengths, or a temperature next to 0.
    """
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RefusedError(
            "max_tokens and max_completion_tokens exclude each other; give one of them",
            400,
            "invalid_value",
            "max_tokens",
        )
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    length = min(limits.default_tokens, limits.answer_tokens) if asked is None else asked
    if length > limits.answer_tokens:
        raise RefusedError(
            f"an answer of {length} tokens is longer than this server gives; ask for at most"
            f" {limits.answer_tokens}",
            400,
            "invalid_value",
            "max_tokens",
        )
    asking: AskKeywords = {"max_new_tokens": length}
    if body.temperature is not None:
        if 0 < body.temperature < COLDEST:
            raise RefusedError(
                f"temperature is {body.temperature:g}; give 0 (greedy) or {COLDEST:g} and above",
                400,
                "invalid_value",
                "temperature",
            )
        asking["temperature"] = body.temperature
    # A share of 1 is all tokens, which many clients send whatever the temperature is.
    if body.top_p is not None and body.top_p < 1:
        asking["top_p"] = body.top_p
    if body.top_k is not None:
        asking["top_k"] = body.top_k
    if body.repetition_penalty is not None:
        asking["repetition_penalty"] = body.repetition_penalty
    if body.seed is not None:
        asking["seed"] = body.seed
    if body.stop is not None:
        asking["stop"] = body.stop
    return asking


def logprobs(body: ChatBody) -> int | None:
    """Most probable tokens to tell with each; None for no logprobs.

    Raises:
        RefusedError: A number of them without logprobs.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise RefusedError(
            "top_logprobs has no effect without logprobs; give logprobs: true",
            400,
            "invalid_value",
            "top_logprobs",
        )
    return (body.top_logprobs or 0) if body.logprobs else None


def shown_patches(pictures: Sequence[bytes], bundle: ServedBundle) -> bytes:
    """The picture whose patches are told.

    Raises:
        RefusedError: There is not one, or this bundle's patches are no grid.
    """
    if len(pictures) != 1 or patch_grid(bundle.session.bundle) is None:
        raise RefusedError(
            "patches are told of one picture, by bundles that take it in one piece; leave patches out",
            400,
            "invalid_value",
            "patches",
        )
    return pictures[0]


def check_pictures(pictures: Sequence[bytes], limits: ServingLimits) -> None:
    """Refuse what would take too much, before it is decoded.

    Raises:
        RefusedError: Too many pictures, or one with too many pixels.
        LvlmError: One is no picture.
    """
    if len(pictures) > limits.pictures:
        raise RefusedError(
            f"{len(pictures)} pictures are more than this server takes; show at most"
            f" {limits.pictures}",
            400,
            "too_many_pictures",
            "messages",
        )
    for picture in pictures:
        height, width = picture_size(picture)
        if height * width > limits.pixels:
            raise RefusedError(
                f"a picture of {width} x {height} pixels is larger than this server takes; make it"
                f" smaller than {limits.pixels} pixels",
                400,
                "picture_too_large",
                "messages",
            )


def check_size(
    size: AskedSize, bundle: ServedBundle, wish: BudgetWish, limits: ServingLimits
) -> None:
    """Refuse what does not fit into the model, or into the memory of one request.

    Raises:
        RefusedError: Says how much there is.
    """
    loaded = bundle.session.bundle
    room = loaded.manifest.text.context_length
    # Where the server may choose, the largest ratio counts.
    ratio = max(bundle.ratios) if wish.ratio is None else wish.ratio
    positions = size.positions(loaded, ratio)
    if positions > room:
        raise RefusedError(
            f"the request does not fit: with an answer of {size.answer_tokens} there are {positions}"
            f" tokens, and room for {room}; say less, show fewer pictures, or ask for a shorter answer"
            " (max_tokens)",
            400,
            "context_length_exceeded",
            "messages",
        )
    most = limits.kv_bytes
    needed = size.kv_bytes(loaded, ratio)
    if most is not None and needed > most:
        raise RefusedError(
            f"the caches of this request take {needed} bytes, and this server gives {most}; say less,"
            " or ask for a shorter answer (max_tokens)",
            400,
            "context_length_exceeded",
            "messages",
        )


def _message(message: ChatMessage, number: int) -> dict[str, Any]:
    """As ``read_openai`` takes it; a picture is its bytes from here on, so that no path can be."""
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, PicturePart):
            parts.append({"type": "image_url", "image_url": _bytes_of(part.image_url.url, number)})
        else:
            parts.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": parts}


def _bytes_of(url: str, number: int) -> bytes:
    if re.match(r"data:", url, re.IGNORECASE) is None:
        raise RefusedError(
            f"the picture in message {number} is no data URL, and this server opens neither files nor"
            " addresses; give data:image/png;base64,… (or jpeg)",
            400,
            "invalid_image_url",
            f"messages.{number}.content",
        )
    content = opened(url)
    assert isinstance(content, bytes), "a data URL is its bytes"
    return content
