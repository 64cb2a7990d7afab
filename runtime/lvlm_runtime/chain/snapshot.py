"""A copy on the host of what caches hold, from which later prompts begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.bundle.manifest import SEQUENCE_MAJOR
from lvlm_runtime.chain.continued import empty
from lvlm_runtime.chain.decoder import Decoder
from lvlm_runtime.chain.held import Element, Held, HeldStage, common, rows_of


@dataclass(frozen=True)
class StageRows:
    """The first rows of one decoder subgraph's caches.

    Attributes:
        elements: What they are.
        rows: ``key.<layer>`` and ``value.<layer>`` -> the rows, in the bundle's layout.
        stage: What is held beside them; its caches are not.
    """

    elements: tuple[Element, ...]
    rows: dict[str, NDArray[Any]]
    stage: HeldStage

    @property
    def size_bytes(self) -> int:
        """Of all arrays."""
        beside = (self.stage.positions, self.stage.sizes, self.stage.hidden, self.stage.query)
        arrays = [*self.rows.values(), *(each for each in beside if each is not None)]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Snapshot:
    """The beginning of a prompt, up to its last picture.

    Attributes:
        elements: At the decoder's input.
        stages: One per decoder subgraph; behind a site that reads the question only what stands in
            front of the pictures.
    """

    elements: tuple[Element, ...]
    stages: tuple[StageRows, ...]

    @property
    def size_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(stage.size_bytes for stage in self.stages)

    def rows_in(self, elements: Sequence[Element]) -> int:
        """Rows that a prompt has in common with it; 0 where no picture is among them."""
        count = common(self.elements, elements)
        pictured = any(not isinstance(key, int) for key, _ in elements[:count])
        return rows_of(elements[:count]) if pictured else 0


def take(decoder: Decoder, held: Held, count: int) -> Snapshot:
    """Copy the first ``count`` elements of what is held."""
    found = []
    for stage in held.stages:
        elements = stage.elements[:count]
        # What was chosen by the question is of no use to another one.
        chosen = [i for i, (key, _) in enumerate(elements) if type(key) is object]
        elements = elements[: chosen[0]] if chosen else elements
        rows = rows_of(elements)
        axis = 1 if decoder.manifest.kv_layout == SEQUENCE_MAJOR else 2
        cut = (slice(None),) * axis + (slice(0, rows),)
        buffers = {
            name: decoder.backend.fetch(buffer)[cut].copy()
            for name, buffer in stage.group.buffers.items()
        }
        beside = replace(
            stage,
            elements=list(elements),
            positions=stage.positions[:, :rows].copy(),
            sizes=None if stage.sizes is None else stage.sizes[:rows].copy(),
            hidden=None if stage.hidden is None else stage.hidden[:rows].copy(),
            query=None if stage.query is None else stage.query[:, :rows].copy(),
            group=replace(stage.group, buffers={}, size_bias=None, length=rows),
        )
        found.append(StageRows(tuple(elements), buffers, beside))
    return Snapshot(tuple(held.stages[0].elements[:count]), tuple(found))


def restore(decoder: Decoder, snapshot: Snapshot, capacity: int) -> Held:
    """Caches of ``capacity`` rows that begin with a snapshot.

    Raises:
        LvlmError: The engines were built for fewer.
    """
    held = empty(decoder, capacity)
    axis = 1 if decoder.manifest.kv_layout == SEQUENCE_MAJOR else 2
    for stage, kept in zip(held.stages, snapshot.stages, strict=True):
        buffers, rows = {}, kept.stage.group.length
        for name, buffer in stage.group.buffers.items():
            shape = decoder.backend.shape(buffer)
            whole = np.zeros(shape, kept.rows[name].dtype)
            whole[(slice(None),) * axis + (slice(0, rows),)] = kept.rows[name]
            buffers[name] = decoder.backend.put(whole)
        stage.group = replace(stage.group, buffers=buffers, length=rows)
        stage.elements = list(kept.elements)
        stage.positions, stage.sizes = kept.stage.positions, kept.stage.sizes
        stage.hidden, stage.query = kept.stage.hidden, kept.stage.query
        if stage.group.size_bias is not None and stage.sizes is not None:
            stage.group.count_sizes(0, stage.sizes, decoder.backend)
    return held
