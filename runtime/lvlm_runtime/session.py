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

from lvlm_runtime.backends import open_backend
from lvlm_runtime.backends.choice import AUTO, choose_backend
from lvlm_runtime.bundle.bundle import TOKENIZER, Bundle
from lvlm_runtime.bundle.generation import GenerationRecord, read_generation
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.prompt.encoder import PromptEncoder
from lvlm_runtime.prompt.rules import AnswerLimits
from lvlm_runtime.prompt.sampling import Sampler, SamplingOptions
from lvlm_runtime.request import CheckedRequest, check_request, layout_for

__all__ = ["Generation", "Picture", "Session"]

GREEDY = SamplingOptions()
# What a chain is compared by: the largest logit, whatever rules the checkpoint has.
ARGMAX = SamplingOptions(repetition_penalty=1.0, rules=False)


@dataclass(frozen=True)
class Generation:
    """An answer, its tokens and its timings.

    Attributes:
        text: The answer.
        token_ids: Its tokens, the stop token included.
        finish_reason: ``stop``, or ``length`` when ``max_new_tokens`` ran out.
        ratio: Share of visual tokens kept, as requested.
        visual_tokens: Visual tokens at each stage, ``(stage, tokens)``, all images together;
            empty without images.
        prompt_tokens: Positions of the prompt before reduction in the decoder.
        time_to_first_token_ms: To the first token, from the call or, where other requests were
            before it, from its turn: tokenizing, reading and preprocessing the pictures, vision,
            prefill and sampling.
        decode_tokens_per_s: Speed after the first token; None for one token.
        own_time_ms: Part of the time to the first token outside the graph calls and image
            preprocessing.
        letterboxed: Indices of images that were padded to the bundle's tile layout.
        waited_ms: For the requests that came before it, of other threads.
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
    waited_ms: float = 0.0


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


class Session:
    """A bundle loaded into a backend.

    Threads may share it: it answers one request at a time, in the order in which they came
    (``busy``, ``waiting``). A request that fails, is interrupted or whose ``on_text`` raises leaves
    nothing behind and lets the next one in. ``on_text`` and the recorder's callbacks must not ask
    the same session, nor wait for a thread that does.
    """

    def __init__(
        self, bundle: Bundle, chain: Chain, encoder: PromptEncoder, generation: GenerationRecord
    ) -> None:
        self.bundle = bundle
        self.chain = chain
        self.encoder = encoder
        self.generation = generation

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
    ) -> Session:
        """As ``open``, for a bundle that is checked already."""
        encoder = PromptEncoder.read(bundle.tokenizer_files(), bundle.path(TOKENIZER))
        chosen = choose_backend(bundle.directory, backend, device)
        generation = read_generation(bundle)
        chain = Chain(bundle, open_backend(chosen, device, threads))
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
        images: Sequence[Picture] = (),
        ratio: float | None = None,
        *,
        max_new_tokens: int = 128,
        sampling: SamplingOptions = GREEDY,
        system: str | None = None,
        on_text: Callable[[str], None] | None = None,
        recorder: Recorder | None = None,
        ignore_stop: bool = False,
    ) -> Generation:
        """Answer a question about pictures.

        Args:
            prompt: The question.
            images: Paths, PIL pictures or arrays, in the order in which the prompt names them.
            ratio: Share of visual tokens to keep; one of the bundle's, None for its first.
            max_new_tokens: Longest answer.
            sampling: How tokens are chosen; greedy under the checkpoint's rules by default.
            system: A system message, where the template takes one.
            on_text: Called with each new piece of the answer (streaming).
            recorder: Takes the timing of every graph call.
            ignore_stop: Answer exactly ``max_new_tokens`` tokens, for measurements.

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
            request = _Request(ids, images, ratio, max_new_tokens, sampling, ignore_stop, query_ids)
            return self._answer(request, on_text, recorder, came, start)

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
    ) -> Generation:
        """As ``generate``, for a prompt that is already tokens, one placeholder id per image.

        ``query_ids`` is the question alone, for a bundle whose projector reads it.
        """
        recorder = Recorder() if recorder is None else recorder
        came = time.perf_counter()
        asked = _Request(token_ids, images, ratio, max_new_tokens, sampling, ignore_stop, query_ids)
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
        sampler = Sampler(asked.sampling, self.generation.rules, limits)
        decoder = self.encoder.decoder()
        state, logits = self._prefill(request, max_new_tokens, recorder, asked.query_ids)
        with recorder.step("sample", "prefill", 1):
            answer = [sampler.sample(logits, history)]
        first = time.perf_counter()
        own_ms = (first - start) * 1e3 - recorder.total_ms("preprocess", "vision", "prefill")
        stop_ids = () if asked.ignore_stop else text.stop_ids
        pieces: list[str] = []
        while answer[-1] not in stop_ids:
            with recorder.step("detokenize", "decode", 1):
                _emit(decoder.push(answer[-1]), pieces, on_text)
            if len(answer) == max_new_tokens:
                break
            logits = self.chain.step(state, answer[-1], recorder)
            history.append(answer[-1])
            with recorder.step("sample", "decode", 1):
                answer.append(sampler.sample(logits, history))
        elapsed = time.perf_counter() - first
        _emit(decoder.flush(), pieces, on_text)
        return Generation(
            text="".join(pieces).strip(),
            token_ids=tuple(answer),
            finish_reason="stop" if answer[-1] in stop_ids else "length",
            ratio=request.budget.ratio,
            visual_tokens=request.visual_tokens(self.bundle.manifest),
            prompt_tokens=request.prompt_tokens,
            time_to_first_token_ms=(first - start) * 1e3,
            decode_tokens_per_s=(len(answer) - 1) / elapsed if len(answer) > 1 else None,
            own_time_ms=own_ms,
            letterboxed=request.letterboxed,
            waited_ms=(start - came) * 1e3,
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

    def layout(self, images: int) -> TileLayout | None:
        """The tile layout for a number of images, among those that the family has."""
        return layout_for(self.bundle.manifest, images)


def _emit(piece: str, pieces: list[str], on_text: Callable[[str], None] | None) -> None:
    """Keep a piece of the answer and stream it; half a character gives an empty piece."""
    if piece:
        pieces.append(piece)
        if on_text is not None:
            on_text(piece)
