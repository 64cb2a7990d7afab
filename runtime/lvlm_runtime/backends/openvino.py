"""OpenVINO on Intel's CPUs and GPUs: the bundle's graph files as they are.

Where a CPU multiplies faster in bfloat16, products are made in it; the reducers, which choose between scores,
and everything where a comparison is wanted, in float32. Values are arrays on the host, bound by their address: caches of
sequence-major bundles (``--dialect decomposed``) are read and written in place. OpenVINO's
GroupQueryAttention gives the filled rows of a cache alone, packed, so the new ones are copied into a
head-major cache behind the call.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.files import changed
from lvlm_runtime.errors import LvlmError, UsageError

Array = NDArray[Any]
DEVICES = ("cpu", "gpu")
# How products are made on a CPU. bfloat16 has to take at most this share of float32's time: with AMX it
# takes a sixth, and with the AVX-512 instruction alone half of it on some cores and 1.5 times it on others.
FLOAT32, BFLOAT16, WORTH = "f32", "bf16", 0.8


class OpenVinoRunner:
    """One compiled graph and its request.

    Args:
        library: The package.
        compiled: The graph.
        label: Name for messages.
    """

    cache_limit: int | None = None

    def __init__(self, library: Any, compiled: Any, label: str) -> None:
        self.outputs = tuple(port.any_name for port in compiled.outputs)
        self._inputs = tuple(port.any_name for port in compiled.inputs)
        self._tensor, self._compiled = library.Tensor, compiled
        self._request = compiled.create_infer_request()
        self._in_place: frozenset[str] = frozenset()
        self._label = label

    def __call__(
        self, feeds: Mapping[str, Any], bound: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        bound = bound or {}
        read = {id(value) for value in feeds.values()}
        in_place = {name: value for name, value in bound.items() if id(value) not in read}
        if not self._in_place <= in_place.keys():
            # A request does not forget what was bound to it.
            self._request = self._compiled.create_infer_request()
        self._in_place = frozenset(in_place)
        request = self._request
        try:
            for name in self._inputs:
                request.set_tensor(name, self._tensor(feeds[name], shared_memory=True))
            for name, target in in_place.items():
                request.set_tensor(name, self._tensor(target, shared_memory=True))
            request.infer()
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise LvlmError(f"{self._label} failed in OpenVINO: {_one_line(error)}") from error
        for name in bound.keys() - in_place.keys():
            filled = request.get_tensor(name).data
            start, stop = int(feeds["write_index"][0]), filled.shape[2]
            bound[name][:, :, start:stop] = filled[:, :, start:]
        # The request's own outputs are overwritten by its next call.
        return {
            name: request.get_tensor(name).data.copy() for name in self.outputs if name not in bound
        }

    def cache_rows(self, wanted: int) -> int:
        return wanted


class OpenVinoBackend:
    """Compiled graphs of one device.

    Args:
        library: The package.
        device: One of ``DEVICES``.
        threads: CPU threads; None for the library's own choice.
        exact: As of ``open_backend``.

    Attributes:
        products: Type that products are made in, ``f32`` or ``bf16``; None for a GPU's own choice.
    """

    name = "openvino"

    def __init__(self, library: Any, device: str, threads: int | None, exact: bool = False) -> None:
        self.device = device
        self._library, self._core = library, library.Core()
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "cpu" and threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        # A GPU's own choice is float16.
        self.products = FLOAT32 if exact else _fastest(library) if device == "cpu" else None
        if exact:
            # Else activations are rounded to 8 bits before they meet quantised weights.
            self._options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0

    def load(self, bundle: Bundle, graph: str) -> OpenVinoRunner:
        path = bundle.path(graph)
        products = FLOAT32 if graph.startswith("reduce.") else self.products
        hint = {} if products is None else {"INFERENCE_PRECISION_HINT": products}
        try:
            # By its name, because it finds the weights only beside a file.
            model = self._core.read_model(path)
            compiled = self._core.compile_model(model, self.device.upper(), self._options | hint)
        except Exception as error:  # as in OpenVinoRunner
            if "TensorScatter" in str(error):
                raise LvlmError(
                    f"{path} writes its cache with TensorScatter, which OpenVINO"
                    f" {self._library.__version__.partition('-')[0]} does not take; build the bundle with"
                    " --dialect decomposed"
                ) from error
            raise LvlmError(f"{path} does not load in OpenVINO: {_one_line(error)}") from error
        if path.read_bytes() != bundle.graph(graph):
            raise changed(path)
        bundle.check_place()
        return OpenVinoRunner(self._library, compiled, path.stem)

    def put(self, array: Array) -> Array:
        return np.array(array, order="C")

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        return np.zeros(tuple(shape), dtype)

    def fetch(self, value: Any) -> Array:
        copied: Array = value.copy()
        return copied

    def shape(self, value: Any) -> tuple[int, ...]:
        return tuple(value.shape)

    def rows(self, value: Any, start: int, stop: int) -> Array:
        whole = value.shape
        if whole[0] != 1 or not 0 <= start <= stop <= whole[1]:
            raise ValueError(f"rows {start} to {stop} are not in a buffer of {list(whole)}")
        view: Array = value[:, start:stop]
        return view


def open_backend(device: str, threads: int | None, exact: bool = False) -> OpenVinoBackend:
    """Open OpenVINO on a device; ``auto`` takes the CPU."""
    if device not in ("auto", *DEVICES):
        raise UsageError(f"openvino has no device {device!r}; known: auto, {', '.join(DEVICES)}")
    try:
        import openvino

        present = openvino.Core().available_devices
    except (ImportError, AttributeError) as error:  # of what pip took off, an empty folder may stay
        raise LvlmError(
            f"no module of OpenVINO ({error}); pip install 'lvlm-export[openvino]'"
        ) from None
    wanted = "cpu" if device == "auto" else device
    if not any(each.split(".")[0] == wanted.upper() for each in present):
        raise LvlmError(
            f"no {wanted.upper()} for OpenVINO here, which has {', '.join(present)}; use --device cpu"
        )
    return OpenVinoBackend(openvino, wanted, threads, exact)


@cache
def _fastest(library: Any) -> str:
    """The type in which this CPU makes a product of 512 rows fastest, measured in a tenth of a second."""
    core = library.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return FLOAT32
    operators = library.opset13
    rows = operators.parameter([512, 1024], np.float32)
    weight = operators.constant(np.ones((1024, 1024), np.float32))
    model = library.Model([operators.matmul(rows, weight, False, False)], [rows])
    x, taken = np.ones((512, 1024), np.float32), {}
    for products in (FLOAT32, BFLOAT16):
        options = {"INFERENCE_PRECISION_HINT": products, "INFERENCE_NUM_THREADS": 1}
        request = core.compile_model(model, "CPU", options).create_infer_request()
        taken[products] = min(_seconds(request, x) for _ in range(4))
    return BFLOAT16 if taken[BFLOAT16] <= WORTH * taken[FLOAT32] else FLOAT32


def _seconds(request: Any, x: Array) -> float:
    start = time.perf_counter()
    request.infer({0: x})
    return time.perf_counter() - start


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
