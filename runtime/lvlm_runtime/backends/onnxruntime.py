"""ONNX Runtime on the CPU, and on CUDA where there is a GPU: the same code with IO binding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.integers import multiply_in_integers, overflow_probe
from lvlm_runtime.graphs.reader import parse_model

try:
    import onnxruntime as ort

    ort.InferenceSession  # noqa: B018  # what pip leaves of it when it takes it off has no content
except (ImportError, AttributeError) as error:
    # The package works without it (plans, reports, TensorRT), so pip does not bring it along.
    raise LvlmError(
        f"ONNX Runtime is not installed ({error}); pip install 'lvlm-export[cpu]', or"
        " 'lvlm-export[cuda]' on a PC or server with an NVIDIA GPU; a device with TensorRT needs none"
        " where the bundle has engines: lvlm-export engines BUNDLE --target trt"
    ) from None

Value = Any  # an ort.OrtValue, or a View of one

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# Its errors are raised; logged too, they would be lines of their own beside ours.
_FATAL_ONLY = 4
# How products with weights of blocks are made (accuracy_level of MatMulNBits): in float32, or with
# activations that are rounded to 8 bits, a scale per block; a token of float32 takes 3 to 100 times as
# long.
_EXACT, _INTEGERS = "1", "4"
# Into how large blocks it cuts a scale per output; its default of 32 is a third slower.
_SCALE_BLOCK = "128"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# How ONNX Runtime says that a graph is of a newer opset than it knows.
_NEWEST_OPSET = re.compile(r"support for domain ai\.onnx is till opset (\d+)")


@dataclass(frozen=True)
class View:
    """Some rows of a buffer, as an address: ONNX Runtime has no slices of its own values.

    Attributes:
        buffer: The whole, an ``ort.OrtValue`` ``[1, length, heads, dim]``, kept alive by this.
        start: First row.
        dims: Shape of the rows.
    """

    buffer: Value
    start: int
    dims: tuple[int, ...]

    @property
    def address(self) -> int:
        """Where the first row lies; an empty view may stand at the buffer's end."""
        whole = self.buffer.shape()
        row = self.buffer.tensor_size_in_bytes() // whole[1]
        address: int = self.buffer.data_ptr() + self.start * row
        return address

    def shape(self) -> tuple[int, ...]:
        """As of an ``ort.OrtValue``."""
        return self.dims

    def numpy(self) -> NDArray[Any]:
        """The rows on the host."""
        rows: NDArray[Any] = self.buffer.numpy()[:, self.start : self.start + self.dims[1]]
        return rows


def available_providers() -> list[str]:
    """What this build of ONNX Runtime can run graphs on; a provider's own libraries may be missing."""
    return list(ort.get_available_providers())


class OrtRunner:
    """One session and its IO binding.

    Args:
        session: The loaded graph.
        device: ``cpu`` or ``cuda``, where outputs are made.
        label: Name for messages.
    """

    cache_limit: int | None = None

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
                self._bind_input(name, value)
                self._bound_inputs[name] = value
        for name in self.outputs:
            target = bound.get(name)
            if target is None:
                binding.bind_output(name, self._device)
            elif self._bound_outputs.get(name) is not target:
                self._bind_output(name, target)
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

    def cache_rows(self, wanted: int) -> int:
        return wanted

    def _bind_input(self, name: str, value: Value) -> None:
        if isinstance(value, View):
            self._binding.bind_input(name, *self._place(value))
        else:
            self._binding.bind_ortvalue_input(name, value)

    def _bind_output(self, name: str, value: Value) -> None:
        if isinstance(value, View):
            self._binding.bind_output(name, *self._place(value))
        else:
            self._binding.bind_ortvalue_output(name, value)

    def _place(self, view: View) -> tuple[str, int, int, tuple[int, ...], int]:
        """Device, its number, element type, shape and address, as IO binding takes them."""
        return self._device, 0, view.buffer.element_type(), view.dims, view.address


class OrtBackend:
    """Sessions and buffers of one device.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: CPU threads per session.
        exact: As of ``open_backend``.
    """

    name = "onnxruntime"

    def __init__(self, device: str, threads: int | None, exact: bool = False) -> None:
        self.device = device
        self._threads = threads
        self._level = _EXACT if exact else _INTEGERS

    def load(self, bundle: Bundle, graph: str) -> OrtRunner:
        path = bundle.path(graph)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # The chain has one session per subgraph; spinning threads of one would slow the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # The graph comes from memory, as it was checked; this says where its weights are.
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(bundle.directory.absolute()))
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", self._level)
        options.add_session_config_entry("session.qdq_matmulnbits_block_size", _SCALE_BLOCK)
        providers = [_CUDA, _CPU] if self.device == "cuda" else [_CPU]
        try:
            session = ort.InferenceSession(
                self._lowered(bundle, graph), options, providers=providers
            )
        except Exception as error:  # as in OrtRunner
            model = parse_model(bundle.graph(graph), path)
            if any(info.element_type == "bfloat16" for info in model.graph.inputs):
                raise LvlmError(
                    f"{path} is bfloat16, for which ONNX Runtime has no kernels here; run it with"
                    " --backend tensorrt, or build the bundle with --precision fp16"
                ) from error
            if known := _NEWEST_OPSET.search(str(error)):
                raise LvlmError(
                    f"{path} speaks opset {model.opsets['']} and ONNX Runtime"
                    f" {ort.__version__} takes {known[1]} at most; pip install -U onnxruntime on"
                    " Python 3.11 or newer, or build the bundle with --dialect decomposed"
                ) from error
            raise LvlmError(f"{path} does not load in ONNX Runtime: {_one_line(error)}") from error
        bundle.check_place()
        return OrtRunner(session, self.device, path.stem)

    def _lowered(self, bundle: Bundle, graph: str) -> bytes:
        """A graph as this device multiplies fastest with what it holds.

        The tower stays as it is: a token's activations rounded as a whole move the ranks by which tokens
        are kept there (of 800 questions at 0.33 the demo model answered 18 fewer than in float32 with
        the tower so, 9 fewer with the language model alone).
        """
        data = bundle.graph(graph)
        tower = graph.startswith("vision.")
        if tower or self.device != "cpu" or self._level == _EXACT or not _multiplies_whole():
            return data
        return multiply_in_integers(data, bundle.path(graph))

    def put(self, array: NDArray[Any]) -> Value:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Value:
        return self.put(np.zeros(tuple(shape), dtype))

    def fetch(self, value: Value) -> NDArray[Any]:
        # ONNX Runtime hands out its own memory, and of a value that was made from an array not even
        # the array is kept alive by it.
        array: NDArray[Any] = value.numpy().copy()
        return array

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(value.shape())

    def rows(self, value: Value, start: int, stop: int) -> Value:
        whole = value.shape()
        if whole[0] != 1 or not 0 <= start <= stop <= whole[1]:
            raise ValueError(f"rows {start} to {stop} are not in a buffer of {list(whole)}")
        return View(value, start, (1, stop - start, *whole[2:]))


@cache
def _multiplies_whole() -> bool:
    """No product of 8-bit integers overflows on this CPU, so that they can be used."""
    data, expected = overflow_probe()
    (found,) = ort.InferenceSession(data, providers=[_CPU]).run(None, {})
    return bool((found == expected).all())


@cache
def _share_arena() -> None:
    """One arena of host memory for all sessions, grown by what is asked for.

    Each session's own would keep the activations of its largest call, and grow in powers of two: on
    LLaVA-OneVision-0.5B's shapes that held 4.58 GB at the peak where this holds 4.10.
    """
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # No limit, grow as requested, the library's own first size and tolerance for gaps.
    ort.create_and_register_allocator(where, ort.OrtArenaCfg(0, 1, -1, -1))


def open_backend(device: str, threads: int | None, exact: bool = False) -> OrtBackend:
    """Open ONNX Runtime on a device; ``auto`` takes CUDA where a GPU answers."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"onnxruntime has no device {device!r}; known: auto, cpu, cuda")
    if device == "cpu":
        return OrtBackend("cpu", threads, exact)
    reason = why_no_cuda()
    if reason is None:
        return OrtBackend("cuda", threads, exact)
    if device == "cuda":
        raise LvlmError(f"no CUDA device for ONNX Runtime: {reason}; use --device cpu")
    return OrtBackend("cpu", threads, exact)


def why_no_cuda() -> str | None:
    """None where a CUDA device can be used, else the reason in a few words."""
    if _CUDA not in ort.get_available_providers():
        return (
            "this ONNX Runtime is built without CUDA (pip uninstall onnxruntime, then pip install"
            " 'lvlm-export[cuda]': the two cannot lie side by side)"
        )
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
