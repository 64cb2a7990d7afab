"""Pixels to the visual tokens of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Runner, Value
from lvlm_runtime.bundle.manifest import GRID, PLANE, Budget, LayoutBudget
from lvlm_runtime.bundle.route import vision_steps
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.planes import Plane, Planes
from lvlm_runtime.chain.recorder import Recorder, Reduced
from lvlm_runtime.chain.text_query import TextQuery
from lvlm_runtime.prompt.sequence import Origins

SUFFIX = "_out"
# What belongs to the tokens and not to the hidden states: kept past graphs that leave it alone.
CARRIED = ("sizes", "origins", GRID)
# The output of a projector or packer is the features that a packer after it takes.
NEXT = {"visual": "features"}


@dataclass(frozen=True)
class Visual:
    """The visual tokens of a request.

    Attributes:
        tokens: ``[n, V, C]``.
        origins: Their places before any reduction.
        sizes: ``[n, V]``, the patches that each stands for, where the decoder counts them.
        planes: What decoder layers add to them, by the name of the graphs' inputs.
    """

    tokens: Value
    origins: Origins
    sizes: NDArray[np.floating] | None = None
    planes: Planes = field(default_factory=dict)

    def carried(self, carry: Callable[[Any], Value]) -> Visual:
        """The same with ``carry`` called on what the backend holds: to the host, or back."""
        planes = {name: replace(each, rows=carry(each.rows)) for name, each in self.planes.items()}
        return replace(self, tokens=carry(self.tokens), planes=planes)


class VisionFlow:
    """Values between the graphs from pixels to features.

    A graph's output ``x_out`` is what the next one takes as ``x``. ``sizes [tiles, T]``, how many
    patches each token stands for, and ``origins``, where in the tile they stood, are kept through the
    graphs that do not change them; before the first that does, every token is one patch.

    Args:
        backend: The backend that holds the values.
        pixel_values: ``[tiles, 3, H, W]`` in the bundle's precision.
    """

    def __init__(self, backend: Backend, pixel_values: NDArray[np.floating]) -> None:
        self.backend = backend
        self.dtype = pixel_values.dtype
        self.values = {"pixel_values": backend.put(pixel_values)}

    def take(self, inputs: Sequence[str]) -> dict[str, Value]:
        """What a graph takes of the values."""
        if "sizes" in inputs and "sizes" not in self.values:
            tokens = self.backend.shape(self.values["hidden"])[:2]
            self.values["sizes"] = self.backend.put(np.ones(tokens, self.dtype))
        return {name: self.values[name] for name in inputs}

    def run(self, runner: Runner, inputs: Sequence[str]) -> dict[str, Value]:
        """Run a graph on the values; returns its outputs, which are the next values."""
        out = runner(self.take(inputs))
        carried = {name: self.values[name] for name in CARRIED if name in self.values}
        named = {
            NEXT.get(name, name.removesuffix(SUFFIX)): value
            for name, value in out.items()
            if not name.startswith(PLANE)
        }
        self.values = {**carried, **named}
        return out

    def drop_prefix(self, prefix: int) -> None:
        """Let ``sizes`` be those of the features, which have no prefix (CLS) token."""
        if "sizes" not in self.values:
            tokens = self.backend.shape(self.values["features"])[:2]
            self.values["sizes"] = self.backend.put(np.ones(tokens, self.dtype))
        elif prefix:
            rows = self.backend.fetch(self.values["sizes"])[:, prefix:]
            self.values["sizes"] = self.backend.put(rows)

    @property
    def main(self) -> Value:
        """Pixels, hidden states or features: what the chain is compared by."""
        names = ("features", "hidden", "pixel_values")
        return next(self.values[name] for name in names if name in self.values)


def grid_rows(tiles: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Row and column ``[tiles, N, 2]`` of the tokens of pictures of which nothing was taken out."""
    places = np.indices(grid, np.int64).reshape(2, -1).T
    return np.tile(places, (tiles, 1, 1))


class VisionEncoder:
    """Vision subgraphs, their reducers, projector and packer.

    Args:
        graphs: The loaded graphs.
        text_query: The question's last row, for a projector that reads it.
    """

    def __init__(self, graphs: LoadedGraphs, text_query: TextQuery) -> None:
        self.graphs = graphs
        self.text_query = text_query

    def encode(
        self,
        pixel_values: NDArray[np.float32],
        budget: Budget,
        part: LayoutBudget,
        recorder: Recorder,
        query_ids: Sequence[int] | None = None,
    ) -> Visual:
        """Visual tokens of pixels ``[tiles, 3, H, W]``; ``query_ids`` is the question alone."""
        graphs, backend = self.graphs, self.graphs.backend
        flow = VisionFlow(backend, pixel_values.astype(graphs.dtype))
        tiles = len(pixel_values)
        if graphs.manifest.grid is not None:
            flow.values[GRID] = backend.put(grid_rows(tiles, graphs.manifest.grid))
        origins = Origins.whole(tiles, graphs.manifest.vision_tokens)
        places: list[Value] = []
        # Planes, and how many reductions were behind each.
        given: dict[str, tuple[Value, int]] = {}
        for step in vision_steps(graphs.manifest, budget, part):
            if step.kind == "projector" and "query" in step.inputs:
                flow.values["query"] = self._query(query_ids, recorder)
            if step.kind == "packer" and "sizes" in step.inputs:
                flow.drop_prefix(graphs.manifest.dims.vision.prefix)
            runner, taken = graphs.runner(step.graph), flow.take(step.inputs)
            with recorder.span(step.name, "vision", tiles * step.tokens_in):
                out = flow.run(runner, step.inputs)
            recorder.show(step.name, flow.main)
            given |= {
                name: (rows, len(places)) for name, rows in out.items() if name.startswith(PLANE)
            }
            if step.kind == "reducer":
                recorder.show_reduction(step.name, Reduced(runner, taken, out))
                places.append(out["places"])
            elif step.kind in ("projector", "packer") and not part.in_order:
                # Its output has an order of its own, whatever was reduced before.
                origins, places = Origins.whole(*backend.shape(flow.main)[:2]), []
        # Fetched last, so that the host does not wait for the device between the graphs.
        stood = [origins]
        for kept in places:
            stood.append(stood[-1].keep(backend.fetch(kept)))
        planes = {name: Plane(rows, stood[count]) for name, (rows, count) in given.items()}
        if part.in_order:
            stood.append(stood[-1].joined(tiles // backend.shape(flow.main)[0]))
        sizes = None
        if graphs.manifest.sized:
            if part.packer is None:
                flow.drop_prefix(graphs.manifest.dims.vision.prefix)
            sizes = backend.fetch(flow.values["sizes"])
        return Visual(flow.main, stood[-1], sizes, planes)

    def _query(self, query_ids: Sequence[int] | None, recorder: Recorder) -> Value:
        with recorder.span("query", "prefill", len(query_ids or ())):
            query = self.graphs.backend.put(self.text_query(query_ids))
        recorder.show("query", query)
        return query
