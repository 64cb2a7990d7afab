"""Answers in OpenAI's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_runtime.answering import Generation
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.serve.job import Begun, Finished, TokenChance

# A stream's last line. Source: OpenAI's API reference.
DONE = "[DONE]"


class TrimmedText:
    """Text piece by piece without white space at its ends, as a whole answer has none.

    Example:
        >>> text = TrimmedText()
        >>> [text.push(piece) for piece in (" ", " a", " ", "b ", "")]
        ['', 'a', '', ' b', '']
    """

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        """What of the text is certain now."""
        text = self._held + piece
        text = text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown


@dataclass
class ReplyForm:
    """What is said to one request.

    Attributes:
        model: The id that it named.
        encoder: Gives tokens their texts.
        identity: Of the answer.
        created: Seconds since 1970.
    """

    model: str
    encoder: PromptEncoder
    identity: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, finished: Finished, begun: Begun, chances: Sequence[TokenChance]
    ) -> dict[str, Any]:
        """The body of an answer."""
        generation = finished.generation
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": generation.text, "refusal": None},
            "finish_reason": finish_reason(generation),
            "logprobs": self.logprobs(chances),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(generation),
            **about(finished, begun),
        }

    def first(self) -> dict[str, Any]:
        """A stream's first chunk, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str, chances: Sequence[TokenChance]) -> dict[str, Any]:
        """A chunk with a piece of the answer."""
        return self._chunk({"content": text}, None, self.logprobs(chances))

    def last(self, finished: Finished, begun: Begun) -> dict[str, Any]:
        """The chunk that ends the answer."""
        return {**self._chunk({}, finish_reason(finished.generation)), **about(finished, begun)}

    def counted(self, generation: Generation) -> dict[str, Any]:
        """The chunk with the usage, which has no choices."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": usage(generation)}

    def logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        """As a choice says them."""
        if not chances:
            return None
        content = [
            {
                **self._token(each.token_id, each.logprob),
                "top_logprobs": [self._token(*token) for token in each.top],
            }
            for each in chances
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.encoder.tokenizer.decode([token_id], skip_special_tokens=False)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.identity, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}


def finish_reason(generation: Generation) -> str:
    """``stop`` or ``length``; who gave up reads neither."""
    return "stop" if generation.finish_reason == "stop" else "length"


def usage(generation: Generation) -> dict[str, Any]:
    """Tokens: OpenAI's fields, and the visual ones at every stage."""
    prompt, answer = generation.prompt_tokens, len(generation.token_ids)
    stages = dict(generation.visual_tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {
            "cached_tokens": generation.reused_tokens,
            "image_tokens": stages.get("decoder", 0),
        },
        "visual_tokens": stages,
    }


def about(finished: Finished, begun: Begun) -> dict[str, Any]:
    """What of the answer is ours: its ratio and its times, and patches where they were asked for."""
    generation = finished.generation
    patches = {} if finished.patches is None else {"patches": finished.patches}
    return {
        **patches,
        "ratio": begun.ratio,
        "instead_of_ratio": begun.instead_of,
        "timings": {
            "waited_ms": begun.waited_ms,
            "time_to_first_token_ms": generation.time_to_first_token_ms,
            "decode_tokens_per_s": generation.decode_tokens_per_s,
        },
    }
