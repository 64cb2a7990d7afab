"""``Session``: ask a bundle questions about pictures.

>>> from lvlm_runtime import Session
>>> session = Session.open("bundle")
>>> session.generate(images=["cat.jpg"], prompt="What color is the circle?", ratio=0.33).text
'yellow'
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.answering import AnswerLoop, Generation, drafts_of
from lvlm_runtime.backends import open_backend
from lvlm_runtime.backends.choice import AUTO, choose_backend
from lvlm_runtime.behind import (
    Answering,
    HeldRequest,
    Loaded,
    RememberedPicture,
    ShownPicture,
    check_chunk,
    shown_picture,
)
from lvlm_runtime.bundle.bundle import TOKENIZER, Bundle
from lvlm_runtime.bundle.generation import GenerationRecord, read_generation
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.conversation import Conversation
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.rules import AnswerLimits
from lvlm_runtime.prompt.sampling import Sampler, SamplingOptions
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.request import CheckedRequest, check_request, layout_for

__all__ = ["Generation", "Picture", "Session"]

GREEDY = SamplingOptions()
# What a chain is compared by: the largest logit, whatever rules the checkpoint has.
ARGMAX = SamplingOptions(repetition_penalty=1.0, rules=False)


@dataclass(frozen=True)
class _Request:
    """What is asked for, the prompt already as tokens; the fields are ``generate_ids``'s."""

    token_ids: Sequence[int]
    images: Sequence[Picture]
    ratio: float | None
    max_new_tokens: int
    sampling: SamplingOptions
    ignore_stop: bool
    query_ids: Sequence[int] | None
    speculate: int


class Session:
    """A bundle loaded into a backend.

    ``memory`` is what it keeps of pictures between requests; None for nothing.

    Threads may share it: it answers one request at a time, in the order in which they came
    (``busy``, ``waiting``). A request that fails, is interrupted or whose ``on_text`` raises leaves
    nothing behind and lets the next one in. ``on_text`` and the recorder's callbacks must not ask
    the same session, nor wait for a thread that does.
    """

    def __init__(
        self,
        bundle: Bundle,
        chain: Chain,
        encoder: PromptEncoder,
        generation: GenerationRecord,
        memory: PictureMemory | None = None,
    ) -> None:
        self.bundle = bundle
        self.chain = chain
        self.encoder = encoder
        self.generation = generation
        self.memory = memory

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        backend: str = AUTO,
        device: str = "auto",
        threads: int | None = None,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Session:
        """Check and load a bundle.

        Args:
            directory: The bundle.
            backend: Key in ``lvlm_runtime.backends.BACKENDS``; ``auto`` takes TensorRT where the
                bundle has engines and a GPU answers, else ONNX Runtime.
            device: ``auto``, ``cpu`` or ``cuda``.
            threads: CPU threads; None for one per physical core.
            require_signature: Public key of minisign, its file or its line of base64; a bundle
                that its owner did not sign is refused before anything of it is read.

        Raises:
            LvlmError: Not a bundle, damaged, not signed as it must be, or not loadable.
        """
        bundle = Bundle.open(directory, require_signature=require_signature)
        return cls.load(bundle, backend, device, threads)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        backend: str = AUTO,
        device: str = "auto",
        threads: int | None = None,
        exact: bool = False,
    ) -> Session:
        """As ``open``, for a bundle that is checked already.

        ``exact`` as of ``open_backend``.
        """
        encoder = PromptEncoder.read(bundle.tokenizer_files(), bundle.path(TOKENIZER))
        chosen = choose_backend(bundle.directory, backend, device)
        generation = read_generation(bundle)
        chain = Chain(bundle, open_backend(chosen, device, threads, exact))
        return cls(bundle, chain, encoder, generation)

    @property
    def busy(self) -> bool:
        """A request is being answered; another one would wait."""
        return self.chain.turns.busy

    @property
    def waiting(self) -> int:
        """Requests that wait behind it."""
        return self.chain.turns.waiting

    def generate(
        self,
        prompt: str,
        images: Sequence[Picture | RememberedPicture] = (),
        ratio: float | None = None,
        *,
        max_new_tokens: int = 128,
        sampling: SamplingOptions = GREEDY,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        recorder: Recorder | None = None,
        ignore_stop: bool = False,
        prefill_chunk: int | None = None,
        speculate: int = 0,
    ) -> Generation:
        """Answer a question about pictures.

        Args:
            prompt: The question.
            images: Paths, PIL pictures or arrays, in the order in which the prompt names them, or
                what ``remember`` gave for them.
            ratio: Share of visual tokens to keep; one of the bundle's, None for its first. A
                picture that is remembered has its own.
            max_new_tokens: Longest answer.
            sampling: How tokens are chosen; greedy under the checkpoint's rules by default.
            system: A system message, where the template takes one.
            on_text: Called with each new piece of the answer (streaming).
            recorder: Takes the timing of every graph call.
            ignore_stop: Answer exactly ``max_new_tokens`` tokens, for measurements.
            prefill_chunk: Most rows of the prompt in one call of a graph; None for all at once.
            speculate: Tokens that are drafted from prompt and answer and verified in one call of the
                decoder; 0 for none. The answer is the same.

        Raises:
            UsageError: The bundle has no such ratio, or this thread is being answered already.
            LvlmError: A picture cannot be read, or the prompt does not fit.
        """
        recorder = Recorder() if recorder is None else recorder
        came = time.perf_counter()
        with self.chain.turns.turn():
            start = time.perf_counter()
            with recorder.step("tokenize", "prefill", 0):
                ids = self.encoder.encode(prompt, len(images), system=system)
                query_ids = self._question(prompt)
            remembered = any(isinstance(each, RememberedPicture) for each in images)
            if not remembered and prefill_chunk is None and (self.memory is None or not images):
                plain = [each for each in images if not isinstance(each, RememberedPicture)]
                request = _Request(
                    ids, plain, ratio, max_new_tokens, sampling, ignore_stop, query_ids, speculate
                )
                return self._answer(request, on_text, recorder, came, start)
            kept = self.bundle.budget(ratio).ratio
            asked = HeldRequest(
                ids,
                [shown_picture(each, kept) for each in images],
                kept,
                max_new_tokens,
                sampling,
                query_ids,
                check_chunk(prefill_chunk),
                ignore_stop=ignore_stop,
                speculate=speculate,
            )
            memory = PictureMemory(0) if self.memory is None else self.memory
            answering = Answering(self._loaded, asked, memory, recorder)
            held = answering.begin()
            generation = answering.answer(held, on_text, came, start)
            answering.remember(held)
            return generation

    def remember(
        self, image: Picture, ratio: float | None = None, system: str | None = None
    ) -> RememberedPicture:
        """Compute what no question changes of a picture, and keep it for ``generate`` and ``chat``.

        Preprocessing, vision and, in the decoder, everything before the first site that reduces by
        what is asked. ``memory`` keeps it within its byte budget; a session without one gets one. A
        picture that it had to drop is computed again where it is asked about.

        Args:
            image: The picture.
            ratio: Share of visual tokens to keep; one of the bundle's, None for its first.
            system: The system message of the questions that follow.

        Raises:
            UsageError: The bundle has no such ratio.
            LvlmError: The picture cannot be read, or the bundle's projector reads the question.

        Example:
            >>> session = Session.open("bundle")
            >>> memory = session.remember("cat.jpg", 1.0)
            >>> memory.until, memory.tokens
            ('the answer', 196)
            >>> session.generate("What color is the circle?", [memory], 1.0).reused_tokens
            200
        """
        if self.memory is None:
            self.memory = PictureMemory()
        projector = self.bundle.manifest.projector
        if projector is not None and projector.reads_text:
            raise LvlmError(
                "this bundle's projector reads the question, so nothing of a picture can be"
                " remembered before there is one; ask about it right away"
            )
        with self.chain.turns.turn():
            shown = ShownPicture.of(image, self.bundle.budget(ratio).ratio)
            ids = self.encoder.encode("?", 1, system=system)
            head = ids[: ids.index(self.bundle.manifest.text.image_token_id) + 1]
            asked = HeldRequest(head, [shown], shown.ratio, 1, GREEDY, None, None)
            answering = Answering(self._loaded, asked, self.memory, Recorder())
            return answering.remember_alone(shown)

    @property
    def _loaded(self) -> Loaded:
        return Loaded(self.bundle, self.chain, self.encoder, self.generation)

    def _question(self, prompt: str) -> list[int] | None:
        """The question alone, where the bundle's projector reads it."""
        projector = self.bundle.manifest.projector
        reads = projector is not None and projector.reads_text
        return self.encoder.question(prompt) if reads else None

    def generate_ids(
        self,
        token_ids: Sequence[int],
        images: Sequence[Picture] = (),
        ratio: float | None = None,
        *,
        max_new_tokens: int = 128,
        sampling: SamplingOptions = GREEDY,
        on_text: Callable[[str], None] | None = None,
        recorder: Recorder | None = None,
        ignore_stop: bool = False,
        query_ids: Sequence[int] | None = None,
        speculate: int = 0,
    ) -> Generation:
        """As ``generate``, for a prompt that is already tokens, one placeholder id per image.

        ``query_ids`` is the question alone, for a bundle whose projector reads it.
        """
        recorder = Recorder() if recorder is None else recorder
        came = time.perf_counter()
        asked = _Request(
            token_ids, images, ratio, max_new_tokens, sampling, ignore_stop, query_ids, speculate
        )
        with self.chain.turns.turn():
            return self._answer(asked, on_text, recorder, came, time.perf_counter())

    def _answer(
        self,
        asked: _Request,
        on_text: Callable[[str], None] | None,
        recorder: Recorder,
        came: float,
        start: float,
    ) -> Generation:
        """Answer in a turn; ``came`` and ``start`` are when the request came and when its turn did."""
        max_new_tokens = asked.max_new_tokens
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens} is below 1; give 1 or more")
        request = check_request(
            self.bundle, asked.token_ids, asked.images, asked.ratio, max_new_tokens, recorder
        )
        text = self.bundle.manifest.text
        history = request.ids(text.image_token_id)
        limits = AnswerLimits(len(history), max_new_tokens, text.stop_ids)
        loop = AnswerLoop(
            self.chain,
            Sampler(asked.sampling, self.generation.rules, limits),
            self.encoder.decoder(),
            () if asked.ignore_stop else text.stop_ids,
            max_new_tokens,
            on_text,
            recorder,
            drafts_of(asked.speculate, text.image_token_id),
        )
        state, logits = self._prefill(request, max_new_tokens, recorder, asked.query_ids)
        loop.run(state, logits, history)
        first_ms = (loop.first - start) * 1e3
        return Generation(
            text=loop.text,
            token_ids=tuple(loop.token_ids),
            finish_reason=loop.finish_reason,
            ratio=request.budget.ratio,
            visual_tokens=request.visual_tokens(self.bundle.manifest),
            prompt_tokens=request.prompt_tokens,
            time_to_first_token_ms=first_ms,
            decode_tokens_per_s=loop.tokens_per_s,
            own_time_ms=first_ms - loop.graphs_ms,
            letterboxed=request.letterboxed,
            waited_ms=(start - came) * 1e3,
            decode_calls=loop.calls,
            drafted_tokens=loop.drafted,
            accepted_tokens=loop.accepted,
        )

    def _prefill(
        self,
        request: CheckedRequest,
        max_new_tokens: int,
        recorder: Recorder,
        query_ids: Sequence[int] | None,
    ) -> tuple[DecodeState, NDArray[np.float32]]:
        visual = None
        if request.pixel_values is not None and request.part is not None:
            visual = self.chain.encode(
                request.pixel_values, request.budget, request.part, recorder, query_ids
            )
        return self.chain.prefill(request.runs, visual, request.part, max_new_tokens, recorder)

    def chat(
        self,
        system: str | None = None,
        *,
        context: int | None = None,
        sampling: SamplingOptions = GREEDY,
        prefill_chunk: int | None = None,
        speculate: int = 0,
    ) -> Conversation:
        """Begin a conversation, whose turns share one cache.

        Args:
            system: A system message, where the template takes one.
            context: Tokens that all turns together may have; None for the model's positions, at most
                4096, or what the engines were built for.
            sampling: How tokens are chosen.
            prefill_chunk: Most rows of a prompt in one call of a graph; None for all at once.
            speculate: As of ``generate``.

        Raises:
            UsageError: A context that the model does not have.
            LvlmError: Engines were built for a shorter one.
        """
        memory = PictureMemory() if self.memory is None else self.memory
        chunk = check_chunk(prefill_chunk)
        return Conversation(self._loaded, memory, system, context, sampling, chunk, speculate)

    def layout(self, images: int) -> TileLayout | None:
        """The tile layout for a number of images, among those that the family has."""
        return layout_for(self.bundle.manifest, images)
