"""ONNX Runtime on the CPU, and on CUDA where there is a GPU: the same code with IO binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lvlm_runtime.errors import LvlmError, UsageError

Value = Any  # an ort.OrtValue

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ERROR_ONLY = 3


class OrtRunner:
    """One session and its IO binding.

    Args:
        session: The loaded graph.
        device: ``cpu`` or ``cuda``, where outputs are made.
        label: Name for messages.
    """

    def __init__(self, session: ort.InferenceSession, device: str, label: str) -> None:
        self.inputs = tuple(item.name for item in session.get_inputs())
        self.outputs = tuple(item.name for item in session.get_outputs())
        self._session = session
        self._device = device
        self._label = label
        self._binding = session.io_binding()
        self._bound_inputs: dict[str, Value] = {}
        self._bound_outputs: dict[str, Value] = {}

    def __call__(
        self, feeds: Mapping[str, Value], bound: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        bound = bound or {}
        binding = self._binding
        for name in self.inputs:
            value = feeds[name]
            # Caches are the same buffers step after step; binding them again costs time.
            if self._bound_inputs.get(name) is not value:
                binding.bind_ortvalue_input(name, value)
                self._bound_inputs[name] = value
        for name in self.outputs:
            target = bound.get(name)
            if target is None:
                binding.bind_output(name, self._device)
            elif self._bound_outputs.get(name) is not target:
                binding.bind_ortvalue_output(name, target)
            self._bound_outputs[name] = target
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ort raises its own types, unexported, one per status code
            raise LvlmError(f"{self._label} failed in ONNX Runtime: {_one_line(error)}") from error
        values = binding.get_outputs()
        return {
            name: value
            for name, value in zip(self.outputs, values, strict=True)
            if name not in bound
        }


class OrtBackend:
    """Sessions and buffers of one device.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: CPU threads per session.
    """

    name = "onnxruntime"

    def __init__(self, device: str, threads: int | None) -> None:
        self.device = device
        self._threads = threads

    def load(self, path: Path) -> OrtRunner:
        options = ort.SessionOptions()
        options.log_severity_level = _ERROR_ONLY
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        # The chain has one session per subgraph; spinning threads of one would slow the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = [_CUDA, _CPU] if self.device == "cuda" else [_CPU]
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # as in OrtRunner
            raise LvlmError(f"{path} does not load in ONNX Runtime: {_one_line(error)}") from error
        return OrtRunner(session, self.device, path.stem)

    def put(self, array: NDArray[Any]) -> Value:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Value:
        return self.put(np.zeros(tuple(shape), dtype))

    def fetch(self, value: Value) -> NDArray[Any]:
        array: NDArray[Any] = value.numpy()
        return array

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(value.shape())


def open_backend(device: str, threads: int | None) -> OrtBackend:
    """Open ONNX Runtime on a device; ``auto`` takes CUDA where a GPU answers."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"onnxruntime has no device {device!r}; known: auto, cpu, cuda")
    if device == "cpu":
        return OrtBackend("cpu", threads)
    reason = why_no_cuda()
    if reason is None:
        return OrtBackend("cuda", threads)
    if device == "cuda":
        raise LvlmError(f"no CUDA device for ONNX Runtime: {reason}; use --device cpu")
    return OrtBackend("cpu", threads)


def why_no_cuda() -> str | None:
    """None where a CUDA device can be used, else the reason in a few words."""
    if _CUDA not in ort.get_available_providers():
        return "this onnxruntime package is built without CUDA (install onnxruntime-gpu)"
    # The provider may be listed on a machine without driver; only an allocation tells.
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/nvhost-gpu").exists():
        return "there is no NVIDIA GPU (no /dev/nvidiactl)"
    try:
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda")
    except Exception as error:
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
