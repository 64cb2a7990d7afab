"""How much one request may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingLimits:
    """Of one request, and of all that wait.

    Attributes:
        body_bytes: Of the body, pictures as base64 included.
        pictures: In all messages together.
        pixels: Of one picture.
        answer_tokens: Longest answer; a longer one that is asked for is refused.
        default_tokens: Longest answer where nobody says how long.
        kv_bytes: Of the caches of one request; None for what the model's positions take.
        waiting: Requests that wait for one bundle.
        deadline_s: From the request to the end of its answer.
    """

    body_bytes: int = 32 << 20
    pictures: int = 8
    pixels: int = 40_000_000
    answer_tokens: int = 1024
    default_tokens: int = 256
    kv_bytes: int | None = None
    waiting: int = 32
    deadline_s: float = 300.0
