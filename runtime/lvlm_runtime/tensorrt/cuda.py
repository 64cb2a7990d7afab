"""The CUDA driver through cuda-python: one device, one stream. Nothing else imports ``cuda``.

Only the driver API is used, which comes with the GPU's driver, so the same code runs on a PC and on
a Jetson. TensorRT works in the device's primary context, and so does this.
Source: NVIDIA, CUDA Driver API; cuda-python returns every result as ``(error, *values)``.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.errors import LvlmError

INSTALL = "pip install cuda-bindings, of the driver's CUDA major version (nvidia-smi)"


class OutOfMemoryError(LvlmError):
    """The device has no such piece of memory left."""


class CudaDriver:
    """A device, its primary context and one stream, on which everything happens in order.

    Args:
        api: ``cuda.bindings.driver``, or what stands for it in a test.
        ordinal: Which GPU.

    Attributes:
        name: Of the GPU.
        compute_capability: As engine records write it, ``sm89``.
        version: CUDA version of the driver, ``13.0``.
        stream: Handle of the stream.
    """

    def __init__(self, api: Any, ordinal: int = 0) -> None:
        self._api = api
        self._context: Any = None
        self._thread = threading.get_ident()
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        self._thread = -1
        self.name = self._call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        kinds = api.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", kind, device)
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.compute_capability = f"sm{major}{minor}"
        version = int(self._call("cuDriverGetVersion"))
        self.version = f"{version // 1000}.{version % 1000 // 10}"
        flag = api.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._call("cuStreamCreate", flag)
        self.stream = int(self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver; the value it gives, if any.

        Raises:
            OutOfMemoryError: Where the driver says so.
            LvlmError: Any other error, with the driver's own words.
        """
        if self._thread != threading.get_ident() and self._context is not None:
            # The driver keeps the context per thread, and a service may answer in another one.
            self._thread = threading.get_ident()
            self._call("cuCtxSetCurrent", self._context)
        error, *values = getattr(self._api, function)(*arguments)
        if error != self._api.CUresult.CUDA_SUCCESS:
            _, text = self._api.cuGetErrorString(error)
            reason = text.decode() if isinstance(text, bytes) else f"error {error}"
            full = error == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY
            raise (OutOfMemoryError if full else LvlmError)(f"CUDA: {function}: {reason}")
        return values[0] if values else None

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address, aligned to at least 256 bytes."""
        return int(self._call("cuMemAlloc", size_bytes))

    def free(self, address: int) -> None:
        """Give device memory back; waits until nothing uses it."""
        self._call("cuMemFree", address)

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Host memory that the device copies from and to by itself; lives as long as the process."""
        address = self._call("cuMemAllocHost", size_bytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(int(address)))

    def copy_in(self, address: int, source: NDArray[np.uint8]) -> None:
        """Queue a copy of pinned memory to the device."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)

    def copy_out(self, target: NDArray[np.uint8], address: int) -> None:
        """Queue a copy from the device to pinned memory."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self._stream)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Queue a copy from device memory to device memory."""
        self._call("cuMemcpyDtoDAsync", target, source, size_bytes, self._stream)

    def clear(self, address: int, size_bytes: int) -> None:
        """Queue zeroing of device memory."""
        self._call("cuMemsetD8Async", address, 0, size_bytes, self._stream)

    def synchronize(self) -> None:
        """Wait for everything that was queued; errors of the device show here."""
        self._call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """What is queued from now on is written down and not executed."""
        modes = self._api.CUstreamCaptureMode
        mode = modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any:
        """Stop writing down; a graph that ``launch`` executes."""
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Queue a captured graph."""
        self._call("cuGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Free a captured graph."""
        self._call("cuGraphExecDestroy", graph)

    def mark(self) -> Any:
        """An event at the end of what is queued."""
        event = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", event, self._stream)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Time on the device between two events, which are used up; waits for the second."""
        self._call("cuEventSynchronize", end)
        elapsed = float(self._call("cuEventElapsedTime", start, end))
        for event in (start, end):
            self._call("cuEventDestroy", event)
        return elapsed


def open_driver() -> CudaDriver:
    """The first GPU.

    Raises:
        LvlmError: cuda-python, the driver or the GPU is missing; says which.
    """
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise LvlmError(f"cuda-python is not installed ({error}); {INSTALL}") from None
    try:
        return CudaDriver(api)
    except LvlmError as error:
        raise LvlmError(f"no GPU can be used: {error}") from None
    except Exception as error:  # cuda-python's own type where libcuda is absent, not exported
        raise LvlmError(
            f"there is no NVIDIA driver here ({' '.join(str(error).split())})"
        ) from None
