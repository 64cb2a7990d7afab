"""The key-value cache: one allocation per layer group, written in place by the graphs.

Layers before a reduction site hold the full prompt, layers after it the reduced one, so every
decoder subgraph has its own length and capacity. Nothing is concatenated or copied per step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lvlm_runtime.backends import Backend, Value
from lvlm_runtime.spec import Stage, TextSpec


@dataclass
class LayerGroup:
    """Caches of the layers of one decoder subgraph.

    Attributes:
        capacity: Rows that fit.
        length: Rows filled.
        feeds: Input name -> buffer.
        bound: Output name -> the same buffers, so the update is in place.
    """

    capacity: int
    length: int
    feeds: dict[str, Value]
    bound: dict[str, Value]


def allocate(
    stage: Stage, capacity: int, text: TextSpec, dtype: np.dtype[np.generic], backend: Backend
) -> LayerGroup:
    """Buffers ``[1, Hkv, capacity, D]`` for the layers of a decoder stage."""
    shape = (1, text.kv_heads, capacity, text.head_dim)
    feeds, bound = {}, {}
    for layer in range(stage.first_layer, stage.last_layer):
        for kind in ("key", "value"):
            buffer = backend.zeros(shape, dtype)
            feeds[f"past_{kind}.{layer}"] = buffer
            bound[f"present_{kind}.{layer}"] = buffer
    return LayerGroup(capacity, 0, feeds, bound)


def size_bytes(stage: Stage, capacity: int, text: TextSpec, dtype: np.dtype[np.generic]) -> int:
    """Memory of a layer group's cache."""
    layers = stage.last_layer - stage.first_layer
    return 2 * layers * text.kv_heads * capacity * text.head_dim * dtype.itemsize
