"""The loaded graphs of a bundle, and the token table for the decoder's input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lvlm_runtime.backends import Backend, Runner
from lvlm_runtime.bundle.bundle import WEIGHTS, Bundle
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.route import shared_graphs
from lvlm_runtime.graphs.external import check_external


class LoadedGraphs:
    """Graphs of a bundle in a backend.

    Weighted subgraphs load at once; reducers and packers, a few kilobytes each, when a budget
    first needs them.

    Args:
        bundle: The bundle.
        backend: What runs the graphs.

    Attributes:
        manifest: Of the bundle.
        dtype: Element type of its hidden states.
        embeddings: The token table ``[vocab, C]``, on the host.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.manifest = bundle.manifest
        self.dtype = numpy_dtype(self.manifest.precision)
        self.embeddings = bundle.embedding_table()
        self._runners: dict[str, Runner] = {}
        for graph in shared_graphs(self.manifest):
            self.runner(graph)

    def runner(self, graph: str) -> Runner:
        """The loaded graph of a file.

        Raises:
            LvlmError: The backend does not take it, or the bundle was replaced meanwhile.
        """
        if graph not in self._runners:
            size = self.manifest.files[WEIGHTS].size_bytes
            check_external(self.bundle.graph(graph), WEIGHTS, size, self.bundle.path(graph))
            self._runners[graph] = self.backend.load(self.bundle, graph)
        return self._runners[graph]

    def close(self) -> None:
        """Let go of the graphs and, with them, of the weights; nothing can be asked afterwards."""
        self._runners.clear()

    @contextmanager
    def replaced(self, runners: Mapping[str, Runner]) -> Iterator[None]:
        """Inside the block, these runners stand for the graphs of their files.

        The parity gate looks at what reducers take and give this way.
        """
        before = dict(self._runners)
        self._runners.update(runners)
        try:
            yield
        finally:
            self._runners = before
