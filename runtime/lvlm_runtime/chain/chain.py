"""The chain: pixels to visual tokens, a prompt to logits, one token to the next logits.

Prefill passes the graphs that ``bundle.route`` names, in that order. Decoding passes the decoder
subgraphs with one token and no reducer.
"""

from __future__ import annotations

from lvlm_runtime.backends import Backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.decoder import Decoder
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.text_query import TextQuery
from lvlm_runtime.chain.vision import VisionEncoder


class Chain:
    """A bundle's graphs in a backend, from pixels and tokens to logits.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.

    Attributes:
        graphs: The loaded graphs.
        vision: Pixels to visual tokens; ``encode`` is its.
        decoder: A prompt to logits; ``prefill`` and ``step`` are its.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.graphs = LoadedGraphs(bundle, backend)
        self.decoder = Decoder(self.graphs)
        self.vision = VisionEncoder(self.graphs, TextQuery(self.decoder.last_row))
        self.runner = self.graphs.runner
        self.encode = self.vision.encode
        self.prefill, self.step = self.decoder.prefill, self.decoder.step
