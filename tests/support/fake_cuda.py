"""A CUDA driver whose device memory is host memory: what ``lvlm_runtime.tensorrt.cuda`` calls.

What is assumed of the real one, from its documentation:
    - one stream runs what was queued in order, and nothing before somebody waits for it;
    - while a stream is captured, calls are written down and not queued;
    - a captured graph repeats its calls on the addresses that they had;
    - memory holds anything at all until it is written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

SUCCESS, INVALID, FULL = 0, 1, 2
ALIGNMENT = 256


class FakeDriver:
    """``cuda.bindings.driver``, as far as ``lvlm_runtime.tensorrt.cuda`` calls it.

    Args:
        memory_bytes: Device memory that there is.
    """

    CUresult = SimpleNamespace(
        CUDA_SUCCESS=SUCCESS, CUDA_ERROR_INVALID_VALUE=INVALID, CUDA_ERROR_OUT_OF_MEMORY=FULL
    )
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.held: dict[int, tuple[Any, int]] = {}
        self.memory_bytes = memory_bytes
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}

    def submit(self, work: Callable[[], None]) -> None:
        """Queue work, or write it down while the stream is captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu"):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 7

    def cuCtxSetCurrent(self, context: int) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        return SUCCESS, b"Fake GPU\0\0\0"

    def cuDeviceGetAttribute(self, kind: str, device: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, {"major": 8, "minor": 9}[kind]

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 13020

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 5

    def cuGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return SUCCESS, {INVALID: b"invalid argument", FULL: b"out of memory"}[error]

    def cuMemAlloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        if sum(held for _, held in self.held.values()) + size > self.memory_bytes:
            return FULL, 0
        buffer = np.full(size + ALIGNMENT, 0xA5, np.uint8)
        address = -(-buffer.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.held[address] = (buffer, size)
        return SUCCESS, address

    def cuMemFree(self, address: int) -> tuple[int]:  # noqa: N802
        self.cuStreamSynchronize(5)
        del self.held[address]
        return (SUCCESS,)

    def cuMemAllocHost(self, size: int) -> tuple[int, int]:  # noqa: N802
        buffer = np.zeros(size, np.uint8)
        self.held[buffer.ctypes.data] = (buffer, 0)
        return SUCCESS, buffer.ctypes.data

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        return self._copy(target, source, size)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        return self._copy(target, source, size)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        return self._copy(target, source, size)

    def _copy(self, target: int, source: int, size: int) -> tuple[int]:
        if size == 0:
            return (INVALID,)
        self.submit(lambda: ctypes.memmove(target, source, size) and None)
        return (SUCCESS,)

    def cuMemsetD8Async(self, target: int, value: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        self.submit(lambda: ctypes.memset(target, value, size) and None)
        return (SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.captured is None, "waiting breaks a capture"
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        return (SUCCESS,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert self.captured is None
        self.captured = []
        return (SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        captured, self.captured = self.captured, None
        return SUCCESS, captured

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, int]:  # noqa: N802
        self.graphs[len(self.graphs)] = graph
        return SUCCESS, len(self.graphs) - 1

    def cuGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        for work in self.graphs[graph]:
            self.submit(work)
        return (SUCCESS,)

    def cuGraphExecDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        self.graphs[graph] = []
        return (SUCCESS,)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, 1

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        return self.cuStreamSynchronize(5)

    def cuEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        return SUCCESS, 0.25

    def cuEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        return (SUCCESS,)
