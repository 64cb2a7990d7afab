"""A conversation: turns that share one cache, whose common beginning is never computed again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lvlm_runtime.answering import AnswerOptions, AnswerPiece, Generation, Loaded, Reply
from lvlm_runtime.asking import Pictures, several, user_turn
from lvlm_runtime.behind import (
    Answering,
    HeldRequest,
    RememberedPicture,
    ShownPicture,
    shown_picture,
)
from lvlm_runtime.chain.held import Held
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.sampling import SamplingOptions
from lvlm_runtime.prompt.stops import stop_texts
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.streaming import StreamedAnswer

# Rows of the caches where nobody says how many: their memory is taken at the first turn, whole.
CONTEXT = 4096


class Conversation:
    """Questions and answers that follow one another; made by ``Session.chat``.

    The answers are those that a fresh session gives to the whole chat. Where an answer fails, is
    interrupted or its ``on_text`` raises, its question is forgotten and the conversation goes on as
    before. Other requests of the session may come between.

    Args:
        loaded: What answers.
        memory: Of pictures.
        system: A system message, where the template takes one.
        context: Rows of the caches: prompt and answers together; None for the model's positions, at
            most ``CONTEXT``, or what the engines were built for.
        sampling: How tokens are chosen.
        chunk: Most rows of a prompt in one call of a graph; None for all at once.
        speculate: Tokens that are drafted from what was said and verified in one call; 0 for none.

    Example:
        >>> from lvlm_runtime import Session
        >>> chat = Session.open("bundle").chat()
        >>> chat.ask("What color is the circle?", ["cat.jpg"]).text
        'yellow'
        >>> chat.ask("Is there a red circle?").reused_tokens
        113
    """

    def __init__(
        self,
        loaded: Loaded,
        memory: PictureMemory,
        system: str | None,
        context: int | None,
        sampling: SamplingOptions,
        chunk: int | None,
        speculate: int = 0,
    ) -> None:
        self.loaded = loaded
        self.memory = memory
        self.context = _context(loaded, context)
        self.sampling = sampling
        self.chunk = chunk
        self.speculate = speculate
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[ShownPicture] = []
        self.held: Held | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all turns; the system message and the caches' memory stay."""
        self.messages = []
        self.pictures = []
        if self.system is not None:
            text = [{"type": "text", "text": self.system}]
            self.messages.append({"role": "system", "content": text})

    def ask(
        self,
        prompt: str,
        images: Pictures = (),
        ratio: float | None = None,
        *,
        max_new_tokens: int = 128,
        on_text: Callable[[str], None] | None = None,
        recorder: Recorder | None = None,
        stop: str | Sequence[str] = (),
    ) -> Generation:
        """The next turn.

        Args:
            prompt: What is said.
            images: New pictures, in front of it; one or several.
            ratio: Share of their visual tokens to keep; one of the bundle's, None for its first.
            max_new_tokens: Longest answer.
            on_text: Called with each new piece of the answer.
            recorder: Takes the timing of every graph call.
            stop: Texts that end the answer, one or several; they are not part of it.

        Raises:
            UsageError: The bundle has no such ratio, or this thread is being answered already.
            LvlmError: A picture cannot be read, or the conversation does not fit; no graph has run
                then, and it can go on.
        """
        return self.stream(
            prompt,
            images,
            ratio,
            max_new_tokens=max_new_tokens,
            recorder=recorder,
            stop=stop,
        ).finish(on_text)

    def stream(
        self,
        prompt: str,
        images: Pictures = (),
        ratio: float | None = None,
        *,
        max_new_tokens: int = 128,
        recorder: Recorder | None = None,
        stop: str | Sequence[str] = (),
    ) -> StreamedAnswer:
        """As ``ask``, piece by piece.

        A turn whose loop is left is forgotten, as one that fails; after ``stop()`` of the answer what
        came of it is the turn.
        """
        sampling = self.sampling
        options = AnswerOptions(max_new_tokens, sampling, False, self.speculate, stop_texts(stop))
        taken = Recorder() if recorder is None else recorder
        shown = several(images)
        return StreamedAnswer(
            lambda reply: self._pieces(prompt, shown, ratio, options, taken, reply)
        )

    def _pieces(
        self,
        prompt: str,
        images: Sequence[Picture | RememberedPicture],
        ratio: float | None,
        options: AnswerOptions,
        recorder: Recorder,
        reply: Reply,
    ) -> Iterator[AnswerPiece]:
        came = time.perf_counter()
        chain, encoder = self.loaded.chain, self.loaded.encoder
        with chain.turns.turn() as ticket:
            start = time.perf_counter()
            kept = self.loaded.bundle.budget(ratio).ratio
            shown = [shown_picture(each, kept) for each in images]
            messages = [*self.messages, *user_turn(prompt, len(shown), None)]
            with recorder.step("tokenize", "prefill", 0):
                ids = encoder.encode_messages(messages)
                query_ids = encoder.question(prompt)
            pictures = [*self.pictures, *shown]
            asked = HeldRequest(ids, pictures, kept, options, query_ids, self.chunk, self.context)
            answering = Answering(self.loaded, asked, self.memory, recorder)
            self.held = answering.begin(self.held)
            for piece in answering.answer(self.held, reply, came, start):
                yield piece
                ticket.adopt()
            answering.remember(self.held)
            assert reply.so_far is not None, "an answer has a token or fails"
            answer = {"role": "assistant", "content": reply.so_far().text}
            self.messages, self.pictures = [*messages, answer], pictures


def _context(loaded: Loaded, context: int | None) -> int:
    limit = loaded.bundle.manifest.text.context_length
    stages = loaded.bundle.manifest.decoder
    built = [loaded.chain.runner(stage.graph).cache_limit for stage in stages]
    if context is None:
        return min((limit, CONTEXT, *(rows for rows in built if rows is not None)))
    if not 1 < context <= limit:
        raise UsageError(f"a context of {context} is not between 2 and the model's {limit} tokens")
    for stage in stages:
        loaded.chain.runner(stage.graph).cache_rows(context)
    return context
