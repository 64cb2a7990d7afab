"""Values between the vision encoder's graphs: names, sizes, and what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lvlm_runtime.chain.vision import VisionFlow

TILES, ROWS = 2, 7


class HostBackend:
    """Values are numpy arrays."""

    def put(self, array: np.ndarray) -> np.ndarray:
        return array

    def shape(self, value: np.ndarray) -> tuple[int, ...]:
        return value.shape


class Graph:
    """Keeps its inputs; gives the outputs that it was constructed with."""

    def __init__(self, *outputs: str) -> None:
        self.outputs = outputs
        self.fed: dict[str, Any] = {}

    def __call__(self, feeds: Mapping[str, Any], bound: Any = None) -> dict[str, Any]:
        self.fed = dict(feeds)
        return {name: np.full((TILES, ROWS, 4), len(name), np.float16) for name in self.outputs}


def start() -> VisionFlow:
    return VisionFlow(HostBackend(), np.zeros((TILES, 3, 8, 8), np.float16))  # type: ignore[arg-type]


def test_an_output_is_what_the_next_graph_takes() -> None:
    flow, stage, reducer = (
        start(),
        Graph("hidden_out", "query", "key"),
        Graph("hidden_out", "places"),
    )
    flow.run(stage, ("pixel_values",))
    assert set(stage.fed) == {"pixel_values"}
    out = flow.run(reducer, ("hidden", "query", "key"))
    assert set(reducer.fed) == {"hidden", "query", "key"}
    assert set(out) == {"hidden_out", "places"}
    assert flow.main is out["hidden_out"]
    out = flow.run(Graph("features"), ("hidden",))
    assert flow.main is out["features"]


def test_smaller_pixels_replace_the_picture() -> None:
    flow = start()
    out = flow.run(Graph("pixel_values_out", "places"), ("pixel_values",))
    assert flow.main is out["pixel_values_out"]
    stage = Graph("hidden_out", "query", "key")
    flow.run(stage, ("pixel_values",))
    assert stage.fed["pixel_values"] is out["pixel_values_out"]


def test_every_token_is_one_patch_until_a_reducer_merges() -> None:
    flow = start()
    flow.run(Graph("hidden_out", "query", "key"), ("pixel_values",))
    reducer = Graph("hidden_out", "places", "sizes_out")
    out = flow.run(reducer, ("hidden", "query", "key", "sizes"))
    assert reducer.fed["sizes"].dtype == np.float16
    np.testing.assert_array_equal(reducer.fed["sizes"], np.ones((TILES, ROWS)))
    for _ in range(2):
        stage = Graph("hidden_out", "query", "key")
        flow.run(stage, ("hidden", "sizes"))
        assert stage.fed["sizes"] is out["sizes_out"], "carried past graphs that leave it alone"
