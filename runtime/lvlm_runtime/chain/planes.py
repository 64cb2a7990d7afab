"""Features of earlier vision layers that the first decoder layers add to the visual tokens (DeepStack).

A plane has a row for every token that stood where its vision layer ended. Nothing moves it when
tokens leave: a token is known by the place where it stood in its picture, so the rows of those that
are left are found by one look-up when a decoder layer asks for them, wherever reducers acted in
between. A token that others were merged into takes the row of its own place.

Source: arXiv:2406.04334; transformers 5.23, ``models/qwen3_vl``, ``_deepstack_process``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lvlm_runtime.backends import Value
from lvlm_runtime.bundle.manifest import Subgraph
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.sequence import Indices, Origins


@dataclass(frozen=True)
class Plane:
    """What one decoder layer adds to the images' tokens.

    Attributes:
        rows: ``[n, V, C]``.
        origins: Where the tokens of the rows stood before any reduction.
    """

    rows: Value
    origins: Origins


# By the decoder layer behind which it is added.
Planes = Mapping[str, Plane]


def plane_rows(origins: Origins, offsets: Indices) -> Indices:
    """Which rows of a plane belong to tokens: ``[n, K]``.

    Args:
        origins: Where the tokens of the plane's ``n`` images stood, ``[n, V]``.
        offsets: ``[n, K]``, where those stood that are left, each one of the plane's.

    Example:
        >>> plane_rows(Origins(np.array([[0, 3, 4, 9]]), 12), np.array([[3, 9]])).tolist()
        [[1, 3]]
    """
    rows = np.full((len(offsets), origins.span), -1, np.int64)
    numbers = np.broadcast_to(np.arange(origins.offsets.shape[1]), origins.offsets.shape)
    np.put_along_axis(rows, origins.offsets, numbers, axis=1)
    found = np.take_along_axis(rows, offsets, axis=1)
    assert (found >= 0).all(), "a token is left that had no row"
    return found


def plane_order(length: int, visual: Indices, rows: Indices, per_image: int) -> Indices:
    """Source of every row of a sequence: row 0, which is nothing, or one of the images' rows.

    Args:
        length: S, rows of the sequence.
        visual: ``[n, K]``, where the images' tokens stand in it.
        rows: ``[n, K]``, as ``plane_rows`` gives them.
        per_image: V, rows of the plane for every image.
    """
    order = np.zeros(length, np.int64)
    order[visual] = 1 + rows + per_image * np.arange(len(rows))[:, None]
    return order


class PlaneFeeds:
    """Planes as decoder subgraphs take them: a row for every row of the sequence.

    Args:
        graphs: The loaded graphs.
    """

    def __init__(self, graphs: LoadedGraphs) -> None:
        self.graphs = graphs

    def of_rows(
        self,
        stage: Subgraph,
        planes: Planes,
        length: int,
        visual: Indices,
        offsets: Indices,
        recorder: Recorder,
    ) -> dict[str, Value]:
        """What the layers of a subgraph add to rows of a prompt, ``[1, S, C]`` each.

        Args:
            stage: The subgraph.
            planes: Of the ``n`` images that the rows are of.
            length: S.
            visual: ``[n, K]``, where tokens of the images stand among the rows.
            offsets: ``[n, K]``, where these stood in their pictures.
            recorder: Takes the timings.

        Raises:
            LvlmError: No graph gave what a layer adds.
        """
        found: dict[str, Value] = {}
        for name in stage.planes:
            plane = planes.get(name)
            if plane is None:
                raise LvlmError(
                    f"{stage.name} adds {name} and no vision graph gives it; build the bundle again"
                )
            rows = plane_rows(plane.origins, offsets)
            per_image = plane.origins.offsets.shape[1]
            order = plane_order(length, visual, rows, per_image)
            feeds = {
                "text": self.nothing(1),
                "visual": plane.rows,
                "order": self.graphs.backend.put(order),
            }
            # Text and images are put together as at the decoder's input, with nothing for text.
            with recorder.span("assemble", "prefill", len(order)):
                out = self.graphs.runner(self.graphs.manifest.assemble)(feeds)
            found[name] = out["hidden"]
        return found

    def nothing(self, rows: int) -> Value:
        """``[1, rows, C]`` zeros, what is added to text."""
        manifest = self.graphs.manifest
        zeros = np.zeros((1, rows, manifest.text.hidden_size), self.graphs.dtype)
        return self.graphs.backend.put(zeros)
