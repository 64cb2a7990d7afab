"""One request in its turn: from what was asked to the pieces of its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from lvlm_runtime.answering import AnswerPiece, Loaded, Reply
from lvlm_runtime.asking import Asked
from lvlm_runtime.behind import Answering, HeldRequest, RememberedPicture, shown_picture
from lvlm_runtime.errors import UsageError
from lvlm_runtime.fresh import FreshAnswering
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.request import check_request


def answer_pieces(
    loaded: Loaded, memory: PictureMemory | None, asked: Asked, reply: Reply
) -> Iterator[AnswerPiece]:
    """Wait for the request's turn, then answer.

    Args:
        loaded: What answers.
        memory: Of pictures, None for none; a prompt of tokens leaves it alone.
        asked: The request.
        reply: What the reader holds.

    Raises:
        UsageError: This thread is being answered already.
        LvlmError: A picture cannot be read, or the prompt does not fit.
    """
    came, recorder = time.perf_counter(), asked.recorder
    with loaded.chain.turns.turn() as ticket:
        start = time.perf_counter()
        with recorder.step("tokenize", "prefill", 0):
            ids, query_ids = _encoded(loaded, asked)
        plain = [each for each in asked.images if not isinstance(each, RememberedPicture)]
        keeps = asked.messages is not None and memory is not None and asked.images
        if len(plain) == len(asked.images) and asked.chunk is None and not keeps:
            length = asked.options.max_new_tokens
            request = check_request(loaded.bundle, ids, plain, asked.ratio, length, recorder)
            fresh = FreshAnswering(loaded, request, asked.options, query_ids, recorder)
            for piece in fresh.answer(reply, came, start):
                yield piece
                ticket.adopt()
            return
        shown = [shown_picture(each, asked.ratio) for each in asked.images]
        behind = HeldRequest(ids, shown, asked.ratio, asked.options, query_ids, asked.chunk)
        kept = PictureMemory(0) if memory is None else memory
        answering = Answering(loaded, behind, kept, recorder)
        held = answering.begin()
        for piece in answering.answer(held, reply, came, start):
            yield piece
            ticket.adopt()
        answering.remember(held)


def question_ids(loaded: Loaded, prompt: str) -> list[int] | None:
    """The question alone, where the bundle's projector reads it."""
    projector = loaded.bundle.manifest.projector
    reads = projector is not None and projector.reads_text
    return loaded.encoder.question(prompt) if reads else None


def chosen_ratio(
    loaded: Loaded, threads: int | None, ratio: float | None, ttft: str | None, images: int
) -> float:
    """The ratio that is asked for, or that the last profile on this machine advises.

    Args:
        loaded: What answers.
        threads: That its backend was opened with.
        ratio: One of the bundle's, None for its first.
        ttft: Time to the first token, as ``300ms``.
        images: Pictures of the request.

    Raises:
        UsageError: The bundle has no such ratio, or both are given.
        LvlmError: There is no profile of such requests, or no ratio meets the time.
    """
    if ttft is None:
        return loaded.bundle.budget(ratio).ratio
    if ratio is not None:
        raise UsageError("ratio and ttft exclude each other; give one of them")
    # Imported where a report is read, or every start would be slower.
    from lvlm_runtime.profiled import Setup, choose_ratio, last_report, milliseconds

    target_ms, backend = milliseconds(ttft), loaded.chain.backend
    setup = Setup(backend.name, backend.device, threads)
    key = loaded.bundle.manifest.content_key
    return choose_ratio(last_report(key, setup, loaded.bundle.directory), target_ms, images).ratio


def _encoded(loaded: Loaded, asked: Asked) -> tuple[Sequence[int], Sequence[int] | None]:
    """The prompt as tokens, and the question alone where the bundle's projector reads it."""
    ids = asked.ids if asked.messages is None else loaded.encoder.encode_messages(asked.messages)
    assert ids is not None, "a request has messages or ids"
    question = asked.question
    return ids, question_ids(loaded, question) if isinstance(question, str) else question
