"""The chain: pixels to visual tokens, a prompt to logits, one token to the next logits.

Prefill passes the graphs that ``bundle.route`` names, in that order. Decoding passes the decoder
subgraphs with one token and no reducer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Runner
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import Budget, LayoutBudget
from lvlm_runtime.chain.decoder import Decoder, DecodeState, Logits
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.text_query import TextQuery
from lvlm_runtime.chain.vision import VisionEncoder, Visual


class Chain:
    """A bundle's graphs in a backend, from pixels and tokens to logits.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.graphs = LoadedGraphs(bundle, backend)
        self.decoder = Decoder(self.graphs)
        self.vision = VisionEncoder(self.graphs, TextQuery(self.decoder.last_row))

    def runner(self, graph: str) -> Runner:
        """The loaded graph of a file."""
        return self.graphs.runner(graph)

    def encode(
        self,
        pixel_values: NDArray[np.float32],
        budget: Budget,
        part: LayoutBudget,
        recorder: Recorder,
        query_ids: Sequence[int] | None = None,
    ) -> Visual:
        """As ``VisionEncoder.encode``."""
        return self.vision.encode(pixel_values, budget, part, recorder, query_ids)

    def prefill(
        self,
        runs: Sequence[Sequence[int]],
        visual: Visual | None,
        part: LayoutBudget | None,
        answer_tokens: int,
        recorder: Recorder,
    ) -> tuple[DecodeState, Logits]:
        """As ``Decoder.prefill``."""
        return self.decoder.prefill(runs, visual, part, answer_tokens, recorder)

    def step(self, state: DecodeState, token: int, recorder: Recorder) -> Logits:
        """As ``Decoder.step``."""
        return self.decoder.step(state, token, recorder)
