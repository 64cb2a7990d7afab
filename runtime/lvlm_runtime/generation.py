"""``Generation``: what a request gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """An answer and what it took.

    Attributes:
        text: The answer.
        token_ids: Its tokens, the stop token included.
        finish_reason: ``stop``, or ``length`` when ``max_new_tokens`` ran out.
        ratio: Share of visual tokens kept, as asked for.
        visual_tokens: Visual tokens at each stage, ``(stage, tokens)``, all images together;
            empty without images.
        prompt_tokens: Positions of the prompt before reduction in the decoder.
        time_to_first_token_ms: From the call to the first token: tokenizing, reading and
            preprocessing the pictures, vision, prefill and sampling.
        decode_tokens_per_s: Speed after the first token; None for one token.
        own_time_ms: Part of the time to the first token outside the graph calls and image
            preprocessing.
        letterboxed: Indices of images that were padded to the bundle's tile layout.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    ratio: float
    visual_tokens: tuple[tuple[str, int], ...]
    prompt_tokens: int
    time_to_first_token_ms: float
    decode_tokens_per_s: float | None
    own_time_ms: float
    letterboxed: tuple[int, ...]
