"""What flows through the vision encoder, by the names that its graphs take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Runner, Value

SUFFIX = "_out"


class VisionFlow:
    """Values on their way from pixels to features.

    A graph's output ``x_out`` is what the next one takes as ``x``. ``sizes [tiles, T]``, how many
    patches each token stands for, is carried past the graphs that do not change it; before the
    first that does, every token is one patch.

    Args:
        backend: Where the values lie.
        pixel_values: ``[tiles, 3, H, W]`` in the bundle's precision.
    """

    def __init__(self, backend: Backend, pixel_values: NDArray[np.floating]) -> None:
        self.backend = backend
        self.dtype = pixel_values.dtype
        self.values = {"pixel_values": backend.put(pixel_values)}

    def run(self, runner: Runner, inputs: Sequence[str]) -> dict[str, Value]:
        """Run a graph on what flows; returns its outputs, which flow on."""
        if "sizes" in inputs and "sizes" not in self.values:
            tokens = self.backend.shape(self.values["hidden"])[:2]
            self.values["sizes"] = self.backend.put(np.ones(tokens, self.dtype))
        out = runner({name: self.values[name] for name in inputs})
        carried = {name: value for name, value in self.values.items() if name == "sizes"}
        named = {name.removesuffix(SUFFIX): value for name, value in out.items()}
        self.values = {**carried, **named}
        return out

    @property
    def main(self) -> Value:
        """Pixels, hidden states or features: what the chain is compared by."""
        names = ("features", "hidden", "pixel_values")
        return next(self.values[name] for name in names if name in self.values)
