"""What the PyTorch reference is loaded from, what goes into it and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from lvlm_export.check.decisions import Decision
from lvlm_export.families import Family
from lvlm_export.reduction.budget import SiteCount
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.prompt.sequence import Placed


@dataclass
class Trace:
    """Hidden states at every cut, by the name of the stage or site that gave them.

    Attributes:
        hidden: The states.
        scores: ``[B, N]`` of the patches at sites in or after the tower, where a method scores
            them.
        decisions: What the reducer of a site decided.
        places: ``[B, K]`` that it kept; not for a site where nothing stays.
        logits: ``[vocab]`` of every token of the answer.
    """

    hidden: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    decisions: dict[str, tuple[Decision, ...]] = field(default_factory=dict)
    places: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    logits: list[NDArray[np.float32]] = field(default_factory=list)

    def note(self, name: str, value: Tensor) -> None:
        """Keep a copy of a hidden state."""
        self.hidden[name] = value.float().numpy().copy()

    def note_reduced(
        self, site: str, value: Tensor, places: Tensor | None, decisions: Sequence[Decision]
    ) -> None:
        """Keep what a reducer gave, and how it came to it."""
        self.note(site, value)
        self.decisions[site] = tuple(decisions)
        if places is not None:
            self.places[site] = places.numpy()


@dataclass(frozen=True)
class ReferenceRequest:
    """A sample as both sides take it: text runs, pixels, tile layout, the question alone."""

    runs: list[list[int]]
    pixel_values: NDArray[np.float32]
    layout: TileLayout
    image_sizes: list[tuple[int, int]]
    query_ids: list[int]


@dataclass(frozen=True)
class DecoderEntry:
    """What goes into the decoder.

    Attributes:
        hidden: ``[1, S, C]``.
        positions: ``[1, S]``.
        placed: Where text and visual tokens stand.
        next_position: Of the answer's first token.
        parts: Text ``[T, C]`` and visual tokens ``[n, V, C]`` that ``hidden`` is put together from.
        lengths: Of the runs of text.
        counts: Tokens at the decoder's sites.
        sizes: ``[n, V]``, patches that the visual tokens stand for; ones where they are not counted.
        planes: ``[n, V, C]``, what each of the first layers adds to the visual tokens.
    """

    hidden: Tensor
    positions: Tensor
    placed: Placed
    next_position: int
    parts: tuple[Tensor, Tensor]
    lengths: list[int]
    counts: tuple[SiteCount, ...]
    sizes: Tensor
    planes: list[Tensor]


@dataclass(frozen=True)
class HeldRows:
    """What is known of the rows of a cut's caches.

    Attributes:
        bias: ``[S]``, the logarithm of the patches that each stands for.
        positions: ``[S]``, RoPE positions.
    """

    bias: Tensor
    positions: Tensor

    def followed_by(self, position: int) -> HeldRows:
        """With a token of the answer behind them, which stands for itself: log 1 is 0."""
        last = torch.tensor([position])
        return HeldRows(nn.functional.pad(self.bias, (0, 1)), torch.cat((self.positions, last)))


def load_eager(directory: Path, family: Family) -> Any:
    """The checkpoint's model in float32, whose attention returns its weights, without rules."""
    with quiet_transformers():
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        model = family.model_class(config).from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
        )
    # Both sides of a comparison take the largest logit: rules of the checkpoint are applied to what
    # the model says, and are no part of it.
    model.generation_config = GenerationConfig()
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the loader's progress bar and notes off the screen; errors still raise."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
