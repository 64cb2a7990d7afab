"""One request on its way through the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lvlm_runtime.answering import AnswerPiece, Generation
from lvlm_runtime.asking import AskKeywords
from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.size import AskedSize
from lvlm_runtime.streaming import StreamedAnswer


@dataclass(frozen=True)
class BudgetWish:
    """The share of visual tokens that a request wants.

    Attributes:
        ratio: One of the bundle's; None where the server may choose.
        ttft_ms: Goal for the time from the request to its first token; the largest ratio that meets it
            is taken. None without a goal.
    """

    ratio: float | None = None
    ttft_ms: float | None = None


@dataclass(frozen=True)
class TokenChance:
    """How probable an answer's token was.

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability, before temperature.
        top: The most probable tokens in its place, the first first, each with its logarithm.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Begun:
    """The turn of a request has come, and its first token is there.

    Attributes:
        ratio: Of its budget.
        instead_of: The ratio that it would have had, where the server is busy; else None.
        waited_ms: In the line.
    """

    ratio: float
    instead_of: float | None
    waited_ms: float


@dataclass(frozen=True)
class Said:
    """A piece of the answer, and how probable its token was where that was asked for."""

    piece: AnswerPiece
    chance: TokenChance | None = None


@dataclass(frozen=True)
class Finished:
    """The answer is whole; ``patches`` as of ``KeptPatches.told``."""

    generation: Generation
    patches: dict[str, Any] | None = None


# What a request is told, in order: Begun, Said …, Finished; or RefusedError at any place.
Event = Begun | Said | Finished | RefusedError


@dataclass(eq=False)
class ServedRequest:
    """A request that was read and checked.

    Attributes:
        client: Who asks; clients take turns.
        asking: Keywords of ``Session.stream``.
        wish: Its budget.
        size: Its size.
        tell: Takes the events, from another thread.
        came: On ``time.perf_counter``.
        top_logprobs: Most probable tokens that are told with every token; None without logprobs.
        shown: The picture whose patches are told; None to tell of none.
        cancelled: Nobody waits for it any more.
        answer: Its answer, from the beginning of its turn.
        began_ms: How long it had waited then.
        ratio: Of its budget, likewise.
        patches: Which stayed, likewise at its end.
    """

    client: str
    asking: AskKeywords
    wish: BudgetWish
    size: AskedSize
    tell: Callable[[Event], None]
    top_logprobs: int | None = None
    shown: bytes | None = None
    came: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    answer: StreamedAnswer | None = None
    began_ms: float = 0.0
    ratio: float | None = None
    patches: dict[str, Any] | None = None

    @property
    def waited_ms(self) -> float:
        """Since it came."""
        return (time.perf_counter() - self.came) * 1e3

    def begin(self, answer: StreamedAnswer) -> None:
        """Its turn has come; where it was cancelled meanwhile, the answer ends with its first token."""
        self.answer = answer
        if self.cancelled:
            answer.stop()

    def cancel(self) -> None:
        """Nobody waits any more: no token behind the one that is being computed."""
        self.cancelled = True
        if self.answer is not None:
            self.answer.stop()
