"""Backends: what executes a graph. The protocol and the table.

A backend is one file here and one line in ``BACKENDS``. Heavy libraries are imported in that file
only. Values stay where the backend keeps them (host or device) from one graph to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lvlm_profiles.registry import resolve
from lvlm_runtime.bundle.bundle import Bundle

BACKENDS: dict[str, str] = {
    "onnxruntime": "lvlm_runtime.backends.onnxruntime:open_backend",
    "openvino": "lvlm_runtime.backends.openvino:open_backend",
    "tensorrt": "lvlm_runtime.backends.tensorrt:open_backend",
}

# Packages that a backend can run with; one of them is enough.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt_rtx", "tensorrt"),
}

# A tensor in the backend's own memory; only the backend that made it looks inside, and a type
# checker refuses it to everybody else.
Value = object


class Runner(Protocol):
    """One loaded graph.

    Attributes:
        outputs: Their names.
        cache_limit: Rows that its caches can have at most; None where any number fits.
    """

    outputs: tuple[str, ...]
    cache_limit: int | None

    def __call__(
        self, feeds: Mapping[str, Value], bound: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Run the graph.

        Args:
            feeds: Every input by name.
            bound: Outputs to write into given values; an input and an output may share one, and
                then the update is in place.

        Returns:
            The outputs that were not bound, by name.
        """
        ...

    def cache_rows(self, wanted: int) -> int:
        """Rows that its caches must have where a request needs ``wanted``.

        Raises:
            LvlmError: It was built for fewer.
        """
        ...


class Backend(Protocol):
    """Memory and graphs of one device.

    Attributes:
        name: Key in ``BACKENDS``.
        device: Where it runs, for reports (``cpu``, ``cuda``, OpenVINO's ``gpu``).
    """

    name: str
    device: str

    def load(self, bundle: Bundle, graph: str) -> Runner:
        """Load a graph of a bundle, as ``bundle.graph`` holds it.

        Weights are mapped or read from the bundle's weight file, which the backend opens by its
        name; ``bundle.check_place`` says whether it is the one that was checked.
        """
        ...

    def put(self, array: NDArray[Any]) -> Value:
        """Move a host array to the device."""
        ...

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Value:
        """A zeroed buffer on the device."""
        ...

    def fetch(self, value: Value) -> NDArray[Any]:
        """A copy of a value on the host, which nothing that runs later changes."""
        ...

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of a value, without moving it."""
        ...

    def rows(self, value: Value, start: int, stop: int) -> Value:
        """Rows ``[start, stop)`` of a sequence-major buffer, sharing its memory.

        The caches of the decomposed dialect are read and written through such views: the filled
        rows are an input, the rows that a call adds a bound output.

        Args:
            value: A buffer ``[1, length, heads, dim]`` from ``zeros``; rows lie one after another,
                so a range of them is one piece of memory.
            start: First row.
            stop: One past the last row; equal to ``start`` for an empty view.

        Returns:
            A value ``[1, stop - start, heads, dim]``, good as a feed and as a bound output. It
            stays valid as long as ``value`` does and shows what is written there later.

        Raises:
            ValueError: The range does not lie in the buffer, or its first axis is not 1.
        """
        ...


def open_backend(name: str, device: str, threads: int | None, exact: bool = False) -> Backend:
    """Open a backend by name.

    Args:
        name: Key in ``BACKENDS``.
        device: ``auto``, ``cpu``, ``cuda``, or for OpenVINO ``gpu``.
        threads: CPU threads; None for one per physical core.
        exact: Multiply with quantised weights in the type of the activations, for a comparison;
            else a backend may round what it multiplies with them, and is several times as fast.

    Raises:
        UsageError: Unknown name, or a device it does not have here.
    """
    return cast("Backend", resolve(BACKENDS, name, "backend")(device, threads, exact))
