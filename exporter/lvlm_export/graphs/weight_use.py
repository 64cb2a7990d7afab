"""How a graph wants a stored tensor, and what stores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lvlm_runtime.bundle.manifest import TensorRef


@dataclass(frozen=True)
class WeightUse:
    """How a graph wants a stored tensor: cast to ``dtype``, transposed, or some of its rows.

    With a ``format`` of ``plan.weight_formats`` it is integers, or with ``scales`` what they are
    multiplied by, which is then of ``dtype``.
    """

    name: str
    dtype: torch.dtype
    transposed: bool = False
    rows: tuple[int, int] | None = None
    format: str | None = None
    scales: bool = False


class Store(Protocol):
    """Where the weights of graphs go; ``bundle.weights.WeightStore`` is one.

    Attributes:
        path: The weight file, beside the graphs.
    """

    path: Path

    def place(self, use: WeightUse) -> TensorRef:
        """Store a tensor of the model, unless it is there, and say where it lies."""
        ...

    def put(self, tensor: torch.Tensor) -> TensorRef:
        """Store a tensor's bytes, unless they are there, and say where they lie."""
        ...
