"""One request in its turn: from what was asked to the pieces of its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lvlm_runtime.answering import AnswerPiece, Generation, Loaded, Reply
from lvlm_runtime.asking import (
    AnswerKeywords,
    Asked,
    AskKeywords,
    BatchQuestion,
    Pictures,
    answer_options,
    asked_chat,
    check_keywords,
    recorder_of,
    several,
)
from lvlm_runtime.behind import (
    Answering,
    HeldRequest,
    RememberedPicture,
    check_chunk,
    shown_picture,
)
from lvlm_runtime.bundle.manifest import CAUSAL
from lvlm_runtime.errors import UsageError
from lvlm_runtime.fresh import FreshAnswering
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.request import check_request


def answer_pieces(
    loaded: Loaded,
    memory: PictureMemory | None,
    asked: Asked,
    reply: Reply,
    prepared: Callable[[], FreshAnswering] | None = None,
) -> Iterator[AnswerPiece]:
    """Wait for the request's turn, then answer.

    Args:
        loaded: What answers.
        memory: Of pictures, None for none; a prompt of tokens leaves it alone.
        asked: The request.
        reply: What the reader holds.
        prepared: Gives what ``prepare`` made of the request already; None where nothing did.

    Raises:
        UsageError: This thread is being answered already.
        LvlmError: A picture cannot be read, or the prompt does not fit.
    """
    came, recorder = time.perf_counter(), asked.recorder
    with loaded.chain.turns.turn() as ticket:
        start = time.perf_counter()
        if from_nothing(loaded, memory, asked):
            fresh = prepare(loaded, asked) if prepared is None else prepared()
            for piece in fresh.answer(reply, came, start):
                yield piece
                ticket.adopt()
            return
        with recorder.step("tokenize", "prefill", 0):
            ids, query_ids = _encoded(loaded, asked)
        shown = [shown_picture(each, asked.ratio) for each in asked.images]
        behind = HeldRequest(ids, shown, asked.ratio, asked.options, query_ids, asked.chunk)
        kept = PictureMemory(0) if memory is None else memory
        answering = Answering(loaded, behind, kept, recorder)
        held = answering.begin()
        for piece in answering.answer(held, reply, came, start):
            yield piece
            ticket.adopt()
        answering.remember(held)


def from_nothing(loaded: Loaded, memory: PictureMemory | None, asked: Asked) -> bool:
    """Whether nothing that is remembered counts and the prompt passes in one go."""
    # Where rows see others behind them, a prompt cannot go on from what is remembered.
    continues = loaded.bundle.manifest.text.attention == CAUSAL
    remembers = continues and asked.messages is not None and memory is not None and asked.images
    known = any(isinstance(each, RememberedPicture) for each in asked.images)
    return not remembers and not known and asked.chunk is None


def prepare(loaded: Loaded, asked: Asked) -> FreshAnswering:
    """Tokens and pixels of a request that is answered from nothing; no graph runs."""
    since = time.perf_counter()
    with asked.recorder.step("tokenize", "prefill", 0):
        ids, query_ids = _encoded(loaded, asked)
    plain = [each for each in asked.images if not isinstance(each, RememberedPicture)]
    length = asked.options.max_new_tokens
    request = check_request(loaded.bundle, ids, plain, asked.ratio, length, asked.recorder)
    return FreshAnswering(loaded, request, asked.options, query_ids, asked.recorder, since)


def answer_batch(
    loaded: Loaded, memory: PictureMemory | None, requests: Sequence[Asked]
) -> Iterator[Generation]:
    """Answer one after another; the pictures of the next are prepared meanwhile.

    Vision and decoding stay in turn: two requests in one graph would read each other's bindings, and
    rows of different caches cannot share one Attention call with one length.

    Args:
        loaded: What answers.
        memory: Of pictures, None for none; what it takes part in is not prepared ahead.
        requests: What is asked.

    Yields:
        The answers, each when it is there. A request that fails raises in its place.
    """
    with ThreadPoolExecutor(1, "lvlm-prepare") as ahead:

        def begin(index: int) -> Callable[[], FreshAnswering] | None:
            if index == len(requests) or not from_nothing(loaded, memory, requests[index]):
                return None
            return ahead.submit(prepare, loaded, requests[index]).result

        prepared = begin(0)
        for index, asked in enumerate(requests):
            now, prepared = prepared, begin(index + 1)
            reply = Reply()
            for _ in answer_pieces(loaded, memory, asked, reply, now):
                pass
            assert reply.so_far is not None, "an answer has a token or fails"
            yield reply.so_far()


def question_ids(loaded: Loaded, prompt: str) -> list[int] | None:
    """The question alone, where the bundle's projector reads it."""
    projector = loaded.bundle.manifest.projector
    reads = projector is not None and projector.reads_text
    return loaded.encoder.question(prompt) if reads else None


def asked_of(
    loaded: Loaded,
    prompt: str | None,
    images: Pictures,
    ratio: float | None,
    asking: AskKeywords,
) -> Asked:
    """A request, checked as far as neither a picture nor the prompt's length is needed.

    Args:
        loaded: What answers.
        prompt: As of ``Session.generate``, as are the others.
        images: Likewise.
        ratio: Likewise.
        asking: Likewise.
    """
    check_keywords(asking, AskKeywords)
    messages, question, pictures = asked_chat(prompt, images, asking)
    chosen = chosen_ratio(loaded, ratio, asking.get("ttft"), pictures)
    options, chunk = answer_options(asking), check_chunk(asking.get("prefill_chunk"))
    recorder = recorder_of(asking)
    return Asked(messages, None, question, pictures, chosen, options, chunk, recorder)


def asked_ids(
    loaded: Loaded,
    token_ids: Sequence[int],
    images: Sequence[Picture],
    ratio: float | None,
    query_ids: Sequence[int] | None,
    asking: AnswerKeywords,
) -> Asked:
    """As ``asked_of``, of a prompt that is already tokens; arguments as of ``Session.generate_ids``."""
    check_keywords(asking, AnswerKeywords)
    chosen, options = loaded.bundle.budget(ratio).ratio, answer_options(asking)
    pictures = several(images)
    return Asked(None, token_ids, query_ids, pictures, chosen, options, None, recorder_of(asking))


def asked_each(
    loaded: Loaded, questions: Iterable[BatchQuestion], asking: BatchQuestion
) -> list[Asked]:
    """Requests of a batch; what a question says counts before ``asking``.

    Raises:
        UsageError: As of ``asked_of``, or one recorder for all.
    """
    check_keywords(asking, BatchQuestion)
    if asking.get("recorder") is not None:
        raise UsageError("a recorder takes one request; give every question its own")
    requests = []
    for question in questions:
        check_keywords(question, BatchQuestion)
        one: BatchQuestion = {**asking, **question}
        prompt, images = one.pop("prompt", None), one.pop("images", ())
        ratio = one.pop("ratio", None)
        requests.append(asked_of(loaded, prompt, images, ratio, one))
    return requests


def chosen_ratio(
    loaded: Loaded,
    ratio: float | None,
    ttft: str | None,
    images: Sequence[Picture | RememberedPicture],
) -> float:
    """The ratio that is asked for, or that the last profile on this machine advises.

    Args:
        loaded: What answers.
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
    from lvlm_runtime.profiled import Setup, milliseconds, profiled_choice

    target_ms, backend = milliseconds(ttft), loaded.chain.backend
    setup = Setup(backend.name, backend.device, loaded.threads)
    plain = [
        each.picture.content if isinstance(each, RememberedPicture) else each for each in images
    ]
    return profiled_choice(loaded.bundle, setup, target_ms, plain).ratio


def _encoded(loaded: Loaded, asked: Asked) -> tuple[Sequence[int], Sequence[int] | None]:
    """The prompt as tokens, and the question alone where the bundle's projector reads it."""
    ids = asked.ids if asked.messages is None else loaded.encoder.encode_messages(asked.messages)
    assert ids is not None, "a request has messages or ids"
    question = asked.question
    return ids, question_ids(loaded, question) if isinstance(question, str) else question
