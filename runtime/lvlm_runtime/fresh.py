"""A request that nothing is known of: checked, looked at, answered from empty caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lvlm_runtime.answering import AnswerOptions, AnswerPiece, Loaded, Reply, answer_loop
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.request import CheckedRequest


@dataclass(frozen=True)
class FreshAnswering:
    """One request.

    Attributes:
        loaded: What answers.
        request: The checked request, pictures included.
        options: How the answer is made.
        query_ids: The question alone, for a bundle whose projector reads it.
        recorder: Takes the timings.
        since: When it was begun with, on ``time.perf_counter``.
    """

    loaded: Loaded
    request: CheckedRequest
    options: AnswerOptions
    query_ids: Sequence[int] | None
    recorder: Recorder
    since: float

    def answer(self, reply: Reply, came: float, start: float) -> Iterator[AnswerPiece]:
        """Answer, in a turn of the chain.

        Args:
            reply: What the reader holds.
            came: When the request came, on ``time.perf_counter``.
            start: When its turn did.
        """
        request, chain, recorder = self.request, self.loaded.chain, self.recorder
        manifest = self.loaded.bundle.manifest
        history = request.ids(manifest.text.image_token_id)
        loop = answer_loop(self.loaded, self.options, len(history), recorder, reply, start)
        visual = None
        if request.pixel_values is not None and request.part is not None:
            visual = chain.encode(
                request.pixel_values, request.budget, request.part, recorder, self.query_ids
            )
        length = self.options.max_new_tokens
        state, logits = chain.prefill(request.runs, visual, request.part, length, recorder)
        for piece in loop.run(state, logits, history):
            reply.so_far = lambda: loop.generation(
                came,
                request.budget.ratio,
                request.visual_tokens(manifest),
                request.prompt_tokens,
                request.letterboxed,
                since=min(came, self.since),
            )
            yield piece
