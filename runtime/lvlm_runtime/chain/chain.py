"""The chain: pixels to visual tokens, a prompt to logits, one token to the next logits.

Prefill passes the graphs that ``bundle.route`` names, in that order. Decoding passes the decoder
subgraphs with the tokens that follow, one or several, and no reducer. One request passes at a time (``chain.turns``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lvlm_runtime.backends import Backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.continued import Continuation, empty
from lvlm_runtime.chain.decoder import Decoder, Logits
from lvlm_runtime.chain.held import Held, ImagePrompt
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.snapshot import Snapshot, restore, take
from lvlm_runtime.chain.text_query import TextQuery
from lvlm_runtime.chain.turns import Turns
from lvlm_runtime.chain.vision import VisionEncoder

P = ParamSpec("P")
R = TypeVar("R")


class Chain:
    """A bundle's graphs in a backend, from pixels and tokens to logits.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.

    Attributes:
        graphs: The loaded graphs.
        vision: Pixels to visual tokens; ``encode`` is its.
        decoder: A prompt to logits; ``prefill``, ``extend`` and ``step`` are its.
        turns: The line of requests; a step outside of a turn takes one of its own.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.graphs = LoadedGraphs(bundle, backend)
        self.decoder = Decoder(self.graphs)
        self.vision = VisionEncoder(self.graphs, TextQuery(self.decoder.last_row))
        self.runner = self.graphs.runner
        self.turns = Turns()
        self.encode = self._in_turn(self.vision.encode)
        self.prefill = self._in_turn(self.decoder.prefill)
        self.extend = self._in_turn(self.decoder.extend)
        self.step = self._in_turn(self.decoder.step)
        self.fill = self._in_turn(self._fill)
        self.begin = self._in_turn(self._begin)

    def empty(self, capacity: int) -> Held:
        """Caches of ``capacity`` rows for ``fill``; LvlmError where engines were built for fewer."""
        return empty(self.decoder, capacity)

    def snapshot(self, held: Held, count: int) -> Snapshot:
        """Copy the first ``count`` elements of what caches hold to the host."""
        return take(self.decoder, held, count)

    def restore(self, snapshot: Snapshot, capacity: int) -> Held:
        """Caches of ``capacity`` rows that begin with a snapshot."""
        return restore(self.decoder, snapshot, capacity)

    def _fill(
        self, prompt: ImagePrompt, held: Held, recorder: Recorder, chunk: int | None = None
    ) -> tuple[Logits, int]:
        """Compute what is new of a prompt behind what the caches hold, as ``Continuation.fill``.

        ``chunk``: most rows of one call of a graph; None for all at once.
        """
        return Continuation(self.decoder, prompt, recorder, chunk).fill(held)

    def _begin(self, prompt: ImagePrompt, held: Held, recorder: Recorder) -> None:
        """As ``fill``, up to the first site that reduces, as ``Continuation.begin``."""
        Continuation(self.decoder, prompt, recorder, None).begin(held)

    def _in_turn(self, step: Callable[P, R]) -> Callable[P, R]:
        @wraps(step)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.turns.within():
                self.bundle.check_unchanged()
                return step(*args, **kwargs)

        return guarded
