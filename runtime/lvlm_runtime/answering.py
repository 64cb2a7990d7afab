"""From the first logits to the whole answer, and what an answer says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import UsageError
from lvlm_runtime.prompt.drafts import MOST, NgramDrafts
from lvlm_runtime.prompt.encoder import StreamDecoder
from lvlm_runtime.prompt.sampling import Sampler


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
        reused_tokens: Positions of the prompt that were in the caches already.
        decode_calls: Decoder calls behind the first token; fewer than tokens where drafts were right.
        drafted_tokens: Tokens that were proposed to those calls.
        accepted_tokens: Those of them that are in the answer.
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


@dataclass
class AnswerLoop:
    """One answer, token by token.

    Attributes:
        chain: What decodes.
        sampler: What chooses.
        decoder: Tokens to text.
        stop_ids: What ends the answer.
        max_new_tokens: Longest answer.
        on_text: Called with each new piece of the answer.
        recorder: Takes the timings.
        drafts: What proposes tokens, or None.
        token_ids: The answer so far.
        calls: Decoder calls behind the first token.
        drafted: Tokens that were proposed.
        accepted: Those that the model chose too.
        first: When its first token came, on ``time.perf_counter``.
        elapsed: Seconds from there to the end.
        graphs_ms: Time in graph calls and in preparing pictures up to the first token.
    """

    chain: Chain
    sampler: Sampler
    decoder: StreamDecoder
    stop_ids: Sequence[int]
    max_new_tokens: int
    on_text: Callable[[str], None] | None
    recorder: Recorder
    drafts: NgramDrafts | None = None
    token_ids: list[int] = field(default_factory=list)
    calls: int = 0
    drafted: int = 0
    accepted: int = 0
    first: float = 0.0
    elapsed: float = 0.0
    graphs_ms: float = 0.0
    _pieces: list[str] = field(default_factory=list)

    def run(self, state: DecodeState, logits: NDArray[np.float32], history: list[int]) -> None:
        """Answer behind a prompt.

        A draft is right where the sampler chooses its token from the logits that verified it. So every
        token is drawn as without drafts, from the same numbers: for a draft that is one token for sure
        this is the rejection rule of speculative sampling (arXiv:2211.17192).

        Args:
            state: Its caches, with room for the answer.
            logits: ``[vocab]`` of its last token.
            history: Its ids, as rules on what was said count them; the answer's join it.
        """
        answer, recorder = self.token_ids, self.recorder
        with recorder.step("sample", "prefill", 1):
            answer.append(self.sampler.sample(logits, history))
        self.first = time.perf_counter()
        self.graphs_ms = recorder.total_ms("preprocess", "vision", "prefill")
        going = self._goes_on()
        while going:
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
                going = self._goes_on()
                if not (going and right):
                    break
            if index < len(drafts):
                state.roll_back(len(drafts) - index, self.chain.backend)
        self.elapsed = time.perf_counter() - self.first
        self._emit(self.decoder.flush())

    def _goes_on(self) -> bool:
        """Stream the last token; False where it is the answer's last."""
        if self.token_ids[-1] in self.stop_ids:
            return False
        with self.recorder.step("detokenize", "decode", 1):
            self._emit(self.decoder.push(self.token_ids[-1]))
        return len(self.token_ids) < self.max_new_tokens

    def _propose(self, history: list[int]) -> list[int]:
        if self.drafts is None:
            return []
        with self.recorder.step("draft", "decode", 1):
            # The last token is always one that the model gives.
            most = self.max_new_tokens - len(self.token_ids) - 1
            return self.drafts.propose([*history, self.token_ids[-1]], most)

    @property
    def text(self) -> str:
        """The answer without the space around it."""
        return "".join(self._pieces).strip()

    @property
    def finish_reason(self) -> str:
        """``stop`` or ``length``."""
        return "stop" if self.token_ids[-1] in self.stop_ids else "length"

    @property
    def tokens_per_s(self) -> float | None:
        """Behind the first token; None for one token."""
        count = len(self.token_ids) - 1
        return count / self.elapsed if count else None

    def _emit(self, piece: str) -> None:
        """Keep a piece and stream it; half a character gives an empty piece."""
        if piece:
            self._pieces.append(piece)
            if self.on_text is not None:
                self.on_text(piece)


def drafts_of(speculate: int, image_token_id: int) -> NgramDrafts | None:
    """What drafts ``speculate`` tokens at once; None for 0.

    Raises:
        UsageError: More than a call verifies.
    """
    if not 0 <= speculate <= MOST:
        raise UsageError(f"cannot draft {speculate} tokens at once; give 0 (none) to {MOST}")
    return NgramDrafts(speculate, frozenset((image_token_id,))) if speculate else None
