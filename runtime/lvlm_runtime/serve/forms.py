"""The body of a request, as OpenAI's API reference says it, and the two fields that are ours.

Plain dataclasses, which FastAPI reads strictly and describes in the server's own OpenAPI document. A
field that is not here is refused, because leaving it out in silence would change the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lvlm_runtime.serve.web import Field

# As pydantic's configuration of a dataclass: nothing unknown.
STRICT = {"extra": "forbid"}
# No text is read as a number, and no number as a truth.
Switch = Annotated[bool, Field(strict=True)]
MOST_TOKENS = 1 << 20
MOST_SEED = (1 << 63) - 1
LONGEST_MS = 1e9


@dataclass
class ImageAddress:
    """A picture as a data URL; ``detail`` has no effect, a ratio takes its place."""

    __pydantic_config__ = STRICT
    url: Annotated[str, Field(description="A data URL, data:image/png;base64,…")]
    detail: Literal["auto", "low", "high"] = "auto"


@dataclass
class TextPart:
    """Words of a message."""

    __pydantic_config__ = STRICT
    type: Literal["text"]
    text: str


@dataclass
class PicturePart:
    """A picture of a message."""

    __pydantic_config__ = STRICT
    type: Literal["image_url"]
    image_url: ImageAddress


@dataclass
class ChatMessage:
    """What was said."""

    __pydantic_config__ = STRICT
    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart | PicturePart], Field(min_length=1)]


@dataclass
class StreamWishes:
    """What a stream says beside the answer."""

    __pydantic_config__ = STRICT
    include_usage: Switch = False


@dataclass
class AnswerFormat:
    """The form of the answer: text, which is the only one that is not checked while it is made."""

    __pydantic_config__ = STRICT
    type: Literal["text"]


@dataclass
class ChatBody:
    """The body of ``/v1/chat/completions``.

    Attributes:
        model: A bundle's id, or one with its ratio: ``bundle@0.33``.
        messages: The chat; it ends with a user.
        stream: Piece by piece, as server-sent events.
        ratio: Share of visual tokens to keep, one of the bundle's.
        ttft_ms: Time to the first token in milliseconds, waiting included; the largest ratio that meets
            it is taken.
        patches: Tell which patches of the request's one picture stay, and what the model saw of it; nothing
            that is remembered of the picture is used.
        user: Who asks, among those that share a key: clients take turns.
    """

    __pydantic_config__ = STRICT
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: Switch = False
    stream_options: StreamWishes | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(strict=True, ge=0.1, le=10)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=MOST_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    n: Literal[1] | None = None
    logprobs: Switch | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    response_format: AnswerFormat | None = None
    user: str | None = None
    ratio: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    patches: Switch = False
    ttft_ms: Annotated[float, Field(strict=True, gt=0, le=LONGEST_MS)] | None = None
