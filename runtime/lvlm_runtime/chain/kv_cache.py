"""The key-value cache: one allocation per layer group, written in place by the graphs.

Layers before a reduction site hold the full prompt, layers after it the reduced one, so every
decoder subgraph has its own length and capacity. Nothing is concatenated or copied per step.

A bundle's dialect decides the order of a buffer in memory (``Manifest.kv_layout``). Head-major: the
whole buffer is input and output, and the graph writes its new rows at ``write_index``.
Sequence-major: the graph takes the filled rows and gives only the new ones, which are bound after
them, so plain operators update in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Value
from lvlm_runtime.bundle.manifest import SEQUENCE_MAJOR, SIZE_BIAS, Subgraph, TextSpec

Bindings = dict[str, Value]


@dataclass
class LayerGroup(ABC):
    """Caches of the layers of one decoder subgraph.

    Attributes:
        capacity: Rows that fit.
        length: Rows filled; the caller adds the new rows after it ran the graph.
        buffers: ``key.<layer>`` and ``value.<layer>`` -> buffer.
        size_bias: ``[1, capacity]``, the logarithm of the patches that the token of each row stands
            for, where the graph counts them. Written with a prompt: a decoded token stands for
            itself, and the row is zero behind what is filled.
        dtype: Element type of the buffers.
        positions: ``[capacity]``, RoPE positions of the filled rows, where layers have a window.
    """

    capacity: int
    length: int
    buffers: dict[str, Value]
    size_bias: Value | None = None
    dtype: np.dtype[np.generic] = field(default_factory=lambda: np.dtype(np.float32))
    # What size_bias was made of, on the host.
    log_sizes: NDArray[np.floating] = field(init=False)
    positions: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.positions = np.zeros(self.capacity, np.int64)
        self.log_sizes = np.zeros((1, self.capacity if self.size_bias is not None else 0))

    @abstractmethod
    def bind(self, count: int, backend: Backend) -> tuple[Bindings, Bindings]:
        """Feeds and bound outputs of a call that adds ``count`` rows."""

    @abstractmethod
    def keys(self, layer: int, backend: Backend) -> Value:
        """What a reducer takes as ``key``: the keys of a layer, all filled rows in it."""

    def truncate(self, length: int, backend: Backend) -> None:
        """Forget the rows from ``length`` on: the next call writes over them, nothing is moved.

        Raises:
            ValueError: There are fewer rows.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"{length} rows are to stay of {self.length}")
        self.length = length
        if self.size_bias is not None and self.log_sizes[0, length:].any():
            self.count_sizes(length, np.zeros(0), backend)

    def count_sizes(self, start: int, sizes: NDArray[np.floating], backend: Backend) -> None:
        """Let the tokens of the rows from ``start`` on stand for ``sizes [S]`` patches.

        Behind them every token stands for itself.
        """
        row = self.log_sizes
        row[0, start:] = 0
        row[0, start : start + len(sizes)] = np.log(sizes)
        self.size_bias = backend.put(row.astype(self.dtype))

    @abstractmethod
    def sizes(self, length: int, backend: Backend) -> Value:
        """What a graph takes as ``size_bias`` where ``length`` rows are filled after it."""

    def _counted(self, length: int, backend: Backend) -> Bindings:
        return {} if self.size_bias is None else {SIZE_BIAS: self.sizes(length, backend)}


@dataclass
class HeadMajorGroup(LayerGroup):
    """Buffers ``[1, Hkv, capacity, D]``, input and output of every call."""

    _feeds: Bindings = field(init=False)
    _bound: Bindings = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._feeds = {f"past_{name}": buffer for name, buffer in self.buffers.items()}
        self._bound = {f"present_{name}": buffer for name, buffer in self.buffers.items()}

    def bind(self, count: int, backend: Backend) -> tuple[Bindings, Bindings]:
        """The buffers, and where in them the rows go."""
        sizes = {
            "write_index": backend.put(np.array([self.length], np.int64)),
            "kv_length": backend.put(np.array([self.length + count], np.int64)),
        }
        return self._feeds | sizes | self._counted(self.length, backend), self._bound

    def keys(self, layer: int, backend: Backend) -> Value:
        """``[1, Hkv, capacity, D]``."""
        return self.buffers[f"key.{layer}"]

    def sizes(self, length: int, backend: Backend) -> Value:
        """``[1, capacity]``."""
        return self.size_bias


@dataclass
class SequenceMajorGroup(LayerGroup):
    """Buffers ``[1, capacity, Hkv, D]``; a call gets views of the rows that it reads and writes."""

    def bind(self, count: int, backend: Backend) -> tuple[Bindings, Bindings]:
        """The filled rows, and the free ones after them that the call fills."""
        start, stop = self.length, self.length + count
        feeds = {f"past_{k}": backend.rows(v, 0, start) for k, v in self.buffers.items()}
        bound = {f"present_{k}": backend.rows(v, start, stop) for k, v in self.buffers.items()}
        return feeds | self._counted(stop, backend), bound

    def keys(self, layer: int, backend: Backend) -> Value:
        """``[1, length, Hkv, D]``."""
        return backend.rows(self.buffers[f"key.{layer}"], 0, self.length)

    def sizes(self, length: int, backend: Backend) -> Value:
        """``[1, length]``."""
        return backend.rows(self.size_bias, 0, length)


def allocate(
    stage: Subgraph,
    capacity: int,
    text: TextSpec,
    layout: str,
    dtype: np.dtype[np.generic],
    backend: Backend,
    sizes: NDArray[np.floating] | None = None,
) -> LayerGroup:
    """Buffers for the layers of a decoder stage, in the layout that the bundle's graphs take.

    ``sizes [S]``: patches that the prompt's tokens stand for, for a stage that counts them; None
    where each is one.
    """
    sequence_major = layout == SEQUENCE_MAJOR
    rows = (capacity, text.kv_heads) if sequence_major else (text.kv_heads, capacity)
    buffers = {
        f"{kind}.{layer}": backend.zeros((1, *rows, text.head_dim), dtype)
        for layer in range(stage.first_layer, stage.last_layer)
        for kind in ("key", "value")
    }
    kind = SequenceMajorGroup if sequence_major else HeadMajorGroup
    size_bias = None
    if SIZE_BIAS in stage.inputs:
        size_bias = backend.zeros((1, capacity), dtype)
    group = kind(capacity, 0, buffers, size_bias, dtype)
    if size_bias is not None and sizes is not None:
        group.count_sizes(0, sizes, backend)
    return group
