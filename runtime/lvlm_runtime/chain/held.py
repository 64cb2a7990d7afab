"""What the caches hold, element by element, so that a later prompt computes only what is new.

An element of a prompt is a token of text, or a whole picture with its rows. Rows of a causal decoder
depend on nothing behind them, so the longest beginning that two prompts have in common stands in the
caches already, whatever else changed. Behind a site that chose among a picture's tokens by what is
asked, the picture is another one for every prompt: there an element is equal to itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend
from lvlm_runtime.bundle.manifest import LayoutBudget
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.kv_cache import LayerGroup
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.prompt.sequence import Indices, text_positions

# What it is, and how many rows it takes.
Element = tuple[Hashable, int]
Rows = NDArray[np.floating]


@dataclass(frozen=True)
class PromptImage:
    """A picture of a prompt.

    Attributes:
        key: Equal for equal visual tokens: picture, budget, layout, and the question where it is read.
        part: Its budget's part for its tile layout.
        load: Gives its visual tokens ``[1, V, C]`` as projector and packer do; called where its rows
            are not in the caches, or a reducer in the decoder reads them.
    """

    key: Hashable
    part: LayoutBudget
    load: Callable[[], Visual]


@dataclass(frozen=True)
class ImagePrompt:
    """A prompt whose pictures may have a budget each.

    Attributes:
        runs: Text token ids around the pictures, n+1 runs.
        images: The n pictures.
    """

    runs: Sequence[Sequence[int]]
    images: Sequence[PromptImage]

    @property
    def text(self) -> list[int]:
        """All runs, one behind the other."""
        return [token for run in self.runs for token in run]

    def elements(self) -> list[Element]:
        """As they enter the decoder."""
        found: list[Element] = [(token, 1) for token in self.runs[0]]
        for image, run in zip(self.images, self.runs[1:], strict=True):
            projected = image.part.projected
            reads = projected is not None and "text" in projected.inputs
            key = (image.key, tuple(self.text)) if reads else image.key
            found.append((key, image.part.tokens_in))
            found += [(token, 1) for token in run]
        return found


@dataclass
class HeldStage:
    """What one decoder subgraph holds.

    Attributes:
        group: Its caches.
        elements: What their first rows are; rows behind them count for nothing.
        positions: ``[R, S]`` RoPE positions of each row.
        sizes: ``[S]`` patches that each stands for, where the decoder counts them.
        hidden: ``[S', C]``, the first rows as they left the subgraph, where a site follows that
            reduced; S' may be less than S.
        query: ``[H, S', D]``, their query in its last layer, as ``hidden``.
    """

    group: LayerGroup
    elements: list[Element]
    positions: Indices
    sizes: Rows | None = None
    hidden: Rows | None = None
    query: Rows | None = None

    def truncate(self, count: int, backend: Backend) -> None:
        """Keep the first ``count`` elements."""
        self.elements = self.elements[:count]
        rows = rows_of(self.elements)
        self.group.truncate(rows, backend)
        self.positions = self.positions[:, :rows]
        self.sizes = None if self.sizes is None else self.sizes[:rows]
        self.hidden = None if self.hidden is None else self.hidden[:rows]
        self.query = None if self.query is None else self.query[:, :rows]

    def known(self, elements: Sequence[Element], reduced: bool) -> int:
        """Elements of a prompt that it holds from the first on; ``reduced``: ``hidden`` is needed."""
        count = common(self.elements, elements)
        if reduced:
            rows = 0 if self.hidden is None else len(self.hidden)
            while rows_of(elements[:count]) > rows:
                count -= 1
        return count


@dataclass
class Held:
    """The caches of a chain between two prompts.

    Attributes:
        stages: One per decoder subgraph.
        position: RoPE position of the next token.
    """

    stages: list[HeldStage]
    position: int

    @property
    def state(self) -> DecodeState:
        """For decoding behind it; ``append`` tells what was decoded."""
        return DecodeState([stage.group for stage in self.stages], self.position)

    def append(self, tokens: Sequence[int], state: DecodeState) -> None:
        """Tokens of text that ``state``, made of this, was fed since."""
        count = len(tokens)
        for stage in self.stages:
            stage.elements += [(token, 1) for token in tokens]
            following = text_positions(self.position, count, len(stage.positions))
            stage.positions = np.concatenate([stage.positions, following], axis=1)
            if stage.sizes is not None:
                stage.sizes = np.concatenate([stage.sizes, np.ones(count, stage.sizes.dtype)])
        self.position = state.position


def common(one: Sequence[Element], other: Sequence[Element]) -> int:
    """Length of the longest beginning that two sequences have in common."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def rows_of(elements: Sequence[Element]) -> int:
    """Rows that elements take."""
    return sum(rows for _, rows in elements)


def reduced_elements(
    elements: Sequence[Element], images: Sequence[int], kept: dict[int, int]
) -> list[Element]:
    """Behind a site.

    Args:
        elements: Before it.
        images: Index among them of each picture.
        kept: Picture -> rows that stay of it. Where some do, which is chosen by the question.
    """
    after = list(elements)
    for image, rows in kept.items():
        key, _ = after[images[image]]
        after[images[image]] = (object() if rows else key, rows)
    return after
