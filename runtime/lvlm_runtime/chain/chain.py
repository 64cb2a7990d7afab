"""The chain: pixels to visual tokens, a prompt to logits, one token to the next logits.

Prefill passes the graphs that ``bundle.route`` names, in that order. Decoding passes the decoder
subgraphs with one token and no reducer. One request passes at a time (``chain.turns``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lvlm_runtime.backends import Backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.decoder import Decoder
from lvlm_runtime.chain.loaded import LoadedGraphs
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
        decoder: A prompt to logits; ``prefill`` and ``step`` are its.
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
        self.step = self._in_turn(self.decoder.step)

    def _in_turn(self, step: Callable[P, R]) -> Callable[P, R]:
        @wraps(step)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.turns.within():
                self.bundle.check_unchanged()
                return step(*args, **kwargs)

        return guarded
