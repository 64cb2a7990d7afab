"""From the first logits to the whole answer, and what an answer says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.generation import GenerationRecord
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder, Timing
from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.drafts import MOST, NgramDrafts
from lvlm_runtime.prompt.encoder import PromptEncoder, StreamDecoder
from lvlm_runtime.prompt.rules import AnswerLimits
from lvlm_runtime.prompt.sampling import LogitsProcessor, Sampler, SamplingOptions
from lvlm_runtime.prompt.stops import StopTexts


@dataclass(frozen=True)
class Loaded:
    """A bundle in a backend, with what answering needs beside it.

    ``threads`` are those that the backend was opened with, None for one per physical core.
    """

    bundle: Bundle
    chain: Chain
    encoder: PromptEncoder
    generation: GenerationRecord
    threads: int | None = None


@dataclass(frozen=True)
class Generation:
    """An answer, its tokens and its timings.

    Attributes:
        text: The answer.
        token_ids: Its tokens, the stop token included.
        finish_reason: ``stop``, ``length`` when ``max_new_tokens`` ran out, or ``cancelled`` when its
            reader wanted no more.
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
        reused_tokens: Positions of the prompt that were in the caches already.
        decode_calls: Decoder calls behind the first token; fewer than tokens where drafts were right.
        drafted_tokens: Tokens that were proposed to those calls.
        accepted_tokens: Those of them that are in the answer.
        timings: Graphs and steps of the host, in the order in which each first ran.
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
    reused_tokens: int = 0
    decode_calls: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    timings: tuple[Timing, ...] = ()


@dataclass(frozen=True)
class AnswerPiece:
    """What one token adds to an answer.

    Attributes:
        token_id: The token.
        text: Characters that are certain now; empty for a stop token, half a character, or what may
            become a text of ``stop``. The texts of all pieces are the answer.
        time_ms: When it came, from the beginning of the request's turn.
    """

    token_id: int
    text: str
    time_ms: float


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is made of logits.

    Attributes:
        max_new_tokens: Longest answer.
        sampling: How tokens are chosen.
        ignore_stop: Answer exactly ``max_new_tokens`` tokens.
        speculate: Tokens that are drafted at once; 0 for none.
        stop: Texts that end it and are not part of it.
        processors: Change the scores of every token, behind the checkpoint's rules.
    """

    max_new_tokens: int
    sampling: SamplingOptions
    ignore_stop: bool = False
    speculate: int = 0
    stop: tuple[str, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        """Check what is known without the model.

        Raises:
            UsageError: An answer of no token, drafts that no call verifies, or two options that
                contradict each other.
        """
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {self.max_new_tokens} is below 1; give 1 or more")
        if not 0 <= self.speculate <= MOST:
            raise UsageError(
                f"cannot draft {self.speculate} tokens at once; give 0 (none) to {MOST}"
            )
        if self.stop and self.ignore_stop:
            raise UsageError("stop and ignore_stop exclude each other; give one of them")


@dataclass
class Reply:
    """An answer while it comes, as its reader holds it.

    Attributes:
        cancelled: The reader wants no further token.
        so_far: The answer up to its last token; None before the first.
    """

    cancelled: bool = False
    so_far: Callable[[], Generation] | None = None


@dataclass
class AnswerLoop:
    """One answer, token by token.

    Attributes:
        chain: What decodes.
        sampler: What chooses.
        decoder: Tokens to text.
        stop_ids: What ends the answer.
        max_new_tokens: Longest answer.
        recorder: Takes the timings.
        drafts: What proposes tokens, or None.
        stops: Finds the texts that end it.
        reply: What its reader holds.
        start: When the request's turn began, on ``time.perf_counter``.
        token_ids: The answer so far.
        calls: Decoder calls behind the first token.
        drafted: Tokens that were proposed.
        accepted: Those that the model chose too.
        first: When its first token came, on ``time.perf_counter``.
        elapsed: Seconds from there to the last.
        graphs_ms: Time in graph calls and in preparing pictures up to the first token.
    """

    chain: Chain
    sampler: Sampler
    decoder: StreamDecoder
    stop_ids: Sequence[int]
    max_new_tokens: int
    recorder: Recorder
    drafts: NgramDrafts | None = None
    stops: StopTexts = field(default_factory=lambda: StopTexts(()))
    reply: Reply = field(default_factory=Reply)
    start: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    calls: int = 0
    drafted: int = 0
    accepted: int = 0
    first: float = 0.0
    elapsed: float = 0.0
    graphs_ms: float = 0.0
    _pieces: list[str] = field(default_factory=list)
    _goes_on: bool = True

    def run(
        self, state: DecodeState, logits: NDArray[np.float32], history: list[int]
    ) -> Iterator[AnswerPiece]:
        """Answer behind a prompt.

        A draft is right where the sampler chooses its token from the logits that verified it. So every
        token is drawn as without drafts, from the same numbers: for a draft that is one token for sure
        this is the rejection rule of speculative sampling (arXiv:2211.17192).

        Args:
            state: Its caches, with room for the answer.
            logits: ``[vocab]`` of its last token.
            history: Its ids, as rules on what was said count them; the answer's join it.

        Yields:
            A piece per token; ``reply.cancelled`` is looked at before the next.
        """
        answer, recorder = self.token_ids, self.recorder
        with recorder.step("sample", "prefill", 1):
            answer.append(self.sampler.sample(logits, history))
        self.first = time.perf_counter()
        self.graphs_ms = recorder.total_ms("preprocess", "vision", "prefill", since=self.start)
        yield self._piece()
        while self.going:
            drafts = self._propose(history)
            rows = self.chain.extend(state, [answer[-1], *drafts], recorder, every_row=bool(drafts))
            self.calls += 1
            self.drafted += len(drafts)
            for index, row in enumerate(rows):
                history.append(answer[-1])
                with recorder.step("sample", "decode", 1):
                    answer.append(self.sampler.sample(row, history))
                right = index < len(drafts) and answer[-1] == drafts[index]
                self.accepted += right
                yield self._piece()
                if not (self.going and right):
                    break
            if index < len(drafts):
                state.roll_back(len(drafts) - index, self.chain.backend)

    @property
    def going(self) -> bool:
        """Another token is wanted."""
        return self._goes_on and not self.reply.cancelled

    def _piece(self) -> AnswerPiece:
        """What the last token adds, and whether it is the answer's last."""
        token, text = self.token_ids[-1], ""
        now = time.perf_counter()
        self.elapsed = now - self.first
        ended = token in self.stop_ids
        with self.recorder.step("detokenize", "decode", 1):
            if not ended:
                text = self.decoder.push(token)
            self._goes_on = not ended and len(self.token_ids) < self.max_new_tokens
            if not self._goes_on:
                text += self.decoder.flush()
            text = self.stops.push(text)
            if self.stops.found:
                self._goes_on = False
            elif not self._goes_on:
                text += self.stops.flush()
        self._pieces.append(text)
        return AnswerPiece(token, text, (now - self.start) * 1e3)

    def _propose(self, history: list[int]) -> list[int]:
        if self.drafts is None:
            return []
        with self.recorder.step("draft", "decode", 1):
            # The last token is always one that the model gives.
            most = self.max_new_tokens - len(self.token_ids) - 1
            return self.drafts.propose([*history, self.token_ids[-1]], most)

    @property
    def finish_reason(self) -> str:
        """``stop``, ``length`` or ``cancelled``."""
        if self.token_ids[-1] in self.stop_ids or self.stops.found:
            return "stop"
        return "length" if len(self.token_ids) == self.max_new_tokens else "cancelled"

    def generation(
        self,
        came: float,
        ratio: float,
        visual_tokens: tuple[tuple[str, int], ...],
        prompt_tokens: int,
        letterboxed: tuple[int, ...],
        reused_tokens: int = 0,
        since: float | None = None,
    ) -> Generation:
        """The answer so far.

        Args:
            came: When the request came, on ``time.perf_counter``.
            ratio: As of ``Generation``, as are the others.
            visual_tokens: Likewise.
            prompt_tokens: Likewise.
            letterboxed: Likewise.
            reused_tokens: Likewise.
            since: When the first work for it began; None for ``came``.
        """
        first_ms, further = (self.first - self.start) * 1e3, len(self.token_ids) - 1
        return Generation(
            text="".join(self._pieces).strip(),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            ratio=ratio,
            visual_tokens=visual_tokens,
            prompt_tokens=prompt_tokens,
            time_to_first_token_ms=first_ms,
            decode_tokens_per_s=further / self.elapsed if further else None,
            own_time_ms=first_ms - self.graphs_ms,
            letterboxed=letterboxed,
            waited_ms=(self.start - came) * 1e3,
            reused_tokens=reused_tokens,
            decode_calls=self.calls,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            timings=self.recorder.timings(came if since is None else since),
        )


def answer_loop(
    loaded: Loaded,
    options: AnswerOptions,
    prompt_length: int,
    recorder: Recorder,
    reply: Reply,
    start: float,
) -> AnswerLoop:
    """The loop of one request.

    Args:
        loaded: What answers.
        options: How the answer is made.
        prompt_length: Ids of the prompt, as ``generate`` of transformers sees it.
        recorder: Takes the timings.
        reply: What the reader holds.
        start: When its turn began, on ``time.perf_counter``.
    """
    text = loaded.bundle.manifest.text
    limits = AnswerLimits(prompt_length, options.max_new_tokens, text.stop_ids)
    return AnswerLoop(
        loaded.chain,
        Sampler(options.sampling, loaded.generation.rules, limits, options.processors),
        loaded.encoder.decoder(),
        () if options.ignore_stop else text.stop_ids,
        options.max_new_tokens,
        recorder,
        drafts_of(options.speculate, text.image_token_id),
        StopTexts(options.stop),
        reply,
        start,
    )


def drafts_of(speculate: int, image_token_id: int) -> NgramDrafts | None:
    """What drafts ``speculate`` tokens at once; None for 0."""
    return NgramDrafts(speculate, frozenset((image_token_id,))) if speculate else None
