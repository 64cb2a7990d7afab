"""TensorRT and TensorRT-RTX: the bundle's engines, chained on one stream by address.

Tensors stay on the device from engine to engine. Only pixels, embeddings and a few numbers go in
and logits come out, through pinned memory; sampling happens on the host.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends.clock import Clock
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.files import CheckedFile
from lvlm_runtime.bundle.manifest import FileRef
from lvlm_runtime.bundle.stamp import Stamp
from lvlm_runtime.engines.record import (
    EngineRecord,
    check_record,
    directory_of,
    engine_targets,
    read_record,
)
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.tensorrt.cuda import CudaDriver, open_driver
from lvlm_runtime.tensorrt.kernel_cache import FILE as CACHE_FILE
from lvlm_runtime.tensorrt.kernel_cache import KernelCache
from lvlm_runtime.tensorrt.library import Library, open_library
from lvlm_runtime.tensorrt.memory import Arena, DeviceArray, Scratch, Staging, new_array
from lvlm_runtime.tensorrt.runner import EngineContext, EngineRunner

NO_ENGINES = "{bundle} has no engines; build them: lvlm-export engines {bundle}"


class EventClock:
    """Times a call on the device, between two CUDA events."""

    name = "CUDA events"

    def __init__(self, cuda: CudaDriver) -> None:
        self._cuda = cuda

    def start(self) -> Any:
        """An event before the call."""
        return self._cuda.mark()

    def stop(self, mark: Any) -> float:
        """Milliseconds between it and one after the call."""
        return self._cuda.elapsed_ms(mark, self._cuda.mark())


class TensorRtBackend:
    """The engines of one bundle on one GPU.

    Args:
        cuda: Driver and stream.
        target: ``rtx`` or ``trt``; None for the one that the bundle has engines for.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(self, cuda: CudaDriver, target: str | None = None) -> None:
        self.arena = Arena(cuda)
        self.runners: dict[str, EngineRunner] = {}
        self._cuda = cuda
        self._target = target
        self._staging = Staging(cuda)
        self._scratch = Scratch(cuda)
        self._opened: _Engines | None = None

    def load(self, bundle: Bundle, graph: str) -> EngineRunner:
        """The engine of a graph of a bundle.

        Raises:
            LvlmError: No engines, engines of another bundle, library or GPU, or a damaged file;
                says how to build them again.
        """
        if self._opened is None:
            self._opened = _open_engines(bundle, self._target, self._cuda)
        opened = self._opened
        device = EngineContext(
            opened.library,
            self._cuda,
            self.arena,
            self._staging,
            self._scratch,
            opened.kernels,
        )
        engine, capacity = opened.engine(graph)
        self.runners[graph] = EngineRunner(device, engine, Path(graph).stem, capacity)
        return self.runners[graph]

    def put(self, array: NDArray[Any]) -> DeviceArray:
        target = new_array(self.arena, array.shape, array.dtype)
        self._staging.send(array, target)
        return target

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
        target = new_array(self.arena, shape, np.dtype(dtype))
        if math.prod(shape):
            self._cuda.clear(target.address, target.nbytes)
        return target

    def fetch(self, value: DeviceArray) -> NDArray[Any]:
        return self._staging.receive(value)

    def shape(self, value: DeviceArray) -> tuple[int, ...]:
        return value.shape

    def rows(self, value: DeviceArray, start: int, stop: int) -> DeviceArray:
        return value.rows(start, stop)

    def clock(self) -> Clock:
        """Calls return before the device is done, so it is the device that times them."""
        return EventClock(self._cuda)


class _Engines:
    """The checked engines of a bundle for one library."""

    def __init__(self, bundle: Bundle, library: Library, record: EngineRecord) -> None:
        self.library = library
        self.kernels: KernelCache | None = None
        # Kernels in a cache are code too, and nothing says whose: under a signature they are compiled.
        if library.target == "rtx" and bundle.key is None:
            self.kernels = KernelCache(directory_of(bundle.directory, "rtx") / CACHE_FILE)
        self._bundle = bundle.directory
        self._record = record
        self._runtime = library.module.Runtime(library.logger)
        self._stamp = Stamp(directory_of(self._bundle, library.target), bundle.key is None)

    def engine(self, graph: str) -> tuple[Any, int | None]:
        """The loaded engine of a graph, and the rows of its caches."""
        entry = self._record.engines[graph]
        path = directory_of(self._bundle, self.library.target) / entry.file
        self.library.logger.errors.clear()
        ref = FileRef(entry.size_bytes, entry.sha256)
        try:
            held = CheckedFile(path)
        except OSError as error:
            raise LvlmError(f"{path} cannot be read ({error}); {self._again}") from None
        # The stamp spares hashing gigabytes at every start; engines are loaded from the same file.
        if held.status().st_size != ref.size_bytes or not self._stamp.vouches(path.name, held, ref):
            raise LvlmError(f"{path} is damaged: its SHA-256 is not the record's; {self._again}")
        with mmap.mmap(held.descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            engine = self._runtime.deserialize_cuda_engine(mapped)
        if engine is None:
            said = self.library.complaint()
            old = "driver version is insufficient" in said
            hint = "update the NVIDIA driver" if old else self._again
            raise LvlmError(f"{self.library.title} does not load {path}: {said}; {hint}")
        return engine, entry.capacity

    @property
    def _again(self) -> str:
        return f"build it again: lvlm-export engines {self._bundle} --target {self.library.target}"


def _open_engines(opened: Bundle, target: str | None, cuda: CudaDriver) -> _Engines:
    bundle = opened.directory
    targets = engine_targets(bundle) if target is None else (target,)
    if not targets:
        raise LvlmError(NO_ENGINES.format(bundle=bundle))
    errors: list[LvlmError] = []
    for each in targets:
        try:
            library = open_library(each)
        except LvlmError as error:
            errors.append(error)
            continue
        record = check_record(
            bundle,
            opened.manifest,
            read_record(bundle, each, opened.key),
            each,
            library.version,
            cuda.compute_capability,
            cuda.version,
        )
        return _Engines(opened, library, record)
    raise errors[0]


def open_backend(device: str, threads: int | None, exact: bool = False) -> TensorRtBackend:
    """Open the GPU; engines are loaded with the bundle's graphs.

    ``threads`` and ``exact`` change nothing: engines multiply in the type of the activations.

    Raises:
        UsageError: A device that is not a GPU.
        LvlmError: No GPU, driver or cuda-python; says which.
    """
    if device not in ("auto", "cuda"):
        raise UsageError(f"tensorrt has no device {device!r}; known: auto, cuda")
    return TensorRtBackend(open_driver())
