"""An answer as an iterator of its pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing

from lvlm_runtime.answering import AnswerPiece, Generation, Reply
from lvlm_runtime.errors import UsageError


class StreamedAnswer:
    """An answer that comes while it is read; made by ``Session.stream`` and ``Conversation.stream``.

    Nothing is computed before the first piece is asked for, and nothing between two pieces. From the
    first to the last the session answers nobody else. Leaving the loop, by ``break`` or an exception,
    ends the request there: what came is in ``generation``, and the next request finds the session as
    it was before. ``stop`` ends an answer in good order, which a conversation then keeps as its turn.

    Args:
        ask: Begins the request; gives its pieces.

    Example:
        >>> from lvlm_runtime import Session
        >>> answer = Session.open("bundle").stream("What color is the circle?", "cat.jpg")
        >>> for piece in answer:
        ...     print(piece.text, end="")
        yellow
        >>> answer.generation.finish_reason
        'stop'
    """

    def __init__(self, ask: Callable[[Reply], Iterator[AnswerPiece]]) -> None:
        self._ask = ask
        self._reply = Reply()
        self._begun = False
        self._generation: Generation | None = None

    def __iter__(self) -> Generator[AnswerPiece, None, None]:
        """The pieces, once.

        Raises:
            UsageError: They were read before.
        """
        if self._begun:
            raise UsageError(
                "this answer was read already; its text is in generation, or ask again"
            )
        self._begun = True
        return self._read()

    def _read(self) -> Generator[AnswerPiece, None, None]:
        try:
            yield from self._ask(self._reply)
        finally:
            so_far, self._reply.so_far = self._reply.so_far, None
            if so_far is not None:
                self._generation = so_far()

    async def __aiter__(self) -> AsyncGenerator[AnswerPiece, None]:
        """As ``__iter__``, in a thread: the event loop goes on while a token is computed.

        A task that is cancelled ends the request behind the token that is being computed.
        """
        loop, pieces = asyncio.get_running_loop(), iter(self)
        thread = ThreadPoolExecutor(1, "lvlm-stream")
        try:
            while (piece := await loop.run_in_executor(thread, next, pieces, None)) is not None:
                yield piece
        finally:
            # In the same thread, so behind the token; it happens even where nobody waits for it.
            closed = loop.run_in_executor(thread, pieces.close)
            thread.shutdown(wait=False)
            await closed

    async def finish_async(self, on_text: Callable[[str], None] | None = None) -> Generation:
        """As ``finish``, without holding up the event loop; ``on_text`` is called in it."""
        async with aclosing(self.__aiter__()) as pieces:
            async for piece in pieces:
                if on_text is not None and piece.text:
                    on_text(piece.text)
        return self.generation

    def stop(self) -> None:
        """No further token: the loop ends before the next one."""
        self._reply.cancelled = True

    def finish(self, on_text: Callable[[str], None] | None = None) -> Generation:
        """Read all pieces and give the whole answer.

        Args:
            on_text: Called with the text of each piece that has some.
        """
        with closing(iter(self)) as pieces:
            for piece in pieces:
                if on_text is not None and piece.text:
                    on_text(piece.text)
        return self.generation

    @property
    def generation(self) -> Generation:
        """The answer as far as it has come, with its timings.

        Raises:
            UsageError: Its first token has not come.
        """
        if self._reply.so_far is not None:
            return self._reply.so_far()
        if self._generation is None:
            raise UsageError(
                "no token of this answer has come; read it first (for piece in answer)"
            )
        return self._generation
