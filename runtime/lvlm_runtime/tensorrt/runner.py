"""One loaded engine: binds addresses, picks the profile, runs or replays on the one stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.gate import CACHE_INPUTS
from lvlm_runtime.tensorrt.bindings import Binding, Shape, choose_profile, read_bindings
from lvlm_runtime.tensorrt.cuda import CudaDriver
from lvlm_runtime.tensorrt.graph_capture import Action, Call, CapturePolicy
from lvlm_runtime.tensorrt.kernel_cache import KernelCache
from lvlm_runtime.tensorrt.library import Library
from lvlm_runtime.tensorrt.memory import Arena, DeviceArray, Scratch, Staging, new_array


@dataclass(frozen=True)
class EngineContext:
    """What all engines of a chain share.

    Attributes:
        library: The TensorRT that built them.
        cuda: Driver and stream.
        arena: Memory for tensors.
        staging: Pinned memory of the host.
        scratch: Memory that engines work in.
        kernels: What TensorRT-RTX compiled, or None for TensorRT.
    """

    library: Library
    cuda: CudaDriver
    arena: Arena
    staging: Staging
    scratch: Scratch
    kernels: KernelCache | None


# What TensorRT asks of every address (NvInferRuntime.h, ``setTensorAddress``).
ALIGNMENT = 256


def _bindable(rows: DeviceArray) -> bool:
    """Whether an output can be written there, and the rows after it behind that.

    The second, so that each decode step does as the step before: one that is written in place and
    one that is not take different memory, and the address of everything else would change with it.
    """
    return rows.address % ALIGNMENT == 0 and rows.nbytes % ALIGNMENT == 0


@dataclass
class _Context:
    """An execution context and the shapes and addresses it has, so that only changes are set again."""

    context: Any
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: tuple[int, int] = (0, 0)


class EngineRunner:
    """An engine as a graph of the chain.

    Args:
        device: Shared memory and stream.
        engine: Deserialised engine.
        label: The graph's name, for messages.
        capacity: Rows of its caches, or None where they may have any length.
    """

    def __init__(
        self, device: EngineContext, engine: Any, label: str, capacity: int | None
    ) -> None:
        self._device = device
        self._engine = engine
        self._label = label
        self._capacity = capacity
        self._bindings = read_bindings(device.library.module, engine, label)
        self.inputs = tuple(each.name for each in self._bindings if each.is_input)
        self.outputs = tuple(each.name for each in self._bindings if not each.is_input)
        self._dtypes = {each.name: each.dtype for each in self._bindings}
        self.cache_limit = capacity
        for each in self._bindings:
            if capacity is None and each.name.startswith(CACHE_INPUTS) and -1 in each.dims:
                # Rows before those of a call; one more is added by it.
                self.cache_limit = max(high[1] for _, _, high in each.ranges) + 1
        self._contexts: dict[tuple[int, bool], _Context] = {}
        self._known: dict[tuple[Shape, ...], tuple[int, dict[str, Shape]]] = {}
        self.policy = CapturePolicy(device.cuda.drop)
        device.scratch.reserve(engine.device_memory_size_v2)

    def cache_rows(self, wanted: int) -> int:
        """Rows to allocate for its caches: as many as the engine was built for, where that is fixed.

        Raises:
            LvlmError: The request needs more.
        """
        if self.cache_limit is not None and wanted > self.cache_limit:
            raise LvlmError(
                f"the request needs {wanted} rows of cache and the engine of {self._label} has"
                f" {self.cache_limit}; ask for a shorter answer (--max-new-tokens), or build engines"
                " for more: lvlm-export engines with --text-tokens and --answer-tokens"
            )
        return wanted if self._capacity is None else self._capacity

    def __call__(
        self, feeds: Mapping[str, DeviceArray], bound: Mapping[str, DeviceArray] | None = None
    ) -> dict[str, DeviceArray]:
        bound = bound or {}
        inputs = {name: self._checked(name, feeds[name]) for name in self.inputs}
        shapes = {name: value.shape for name, value in inputs.items()}
        profile, made = self._profile_of(shapes)
        outputs = {
            each.name: self._output(each, made[each.name], bound.get(each.name), inputs)
            for each in self._bindings
            if not each.is_input
        }
        self._run(profile, {**inputs, **outputs})
        for name, value in bound.items():
            if outputs[name] is not value:
                self._device.cuda.copy(value.address, outputs[name].address, value.nbytes)
        return {name: value for name, value in outputs.items() if name not in bound}

    def _checked(self, name: str, value: DeviceArray) -> DeviceArray:
        if value.dtype != self._dtypes[name]:
            raise LvlmError(
                f"{self._label}, {name}: is {value.dtype} and the engine takes {self._dtypes[name]}"
            )
        if value.address % ALIGNMENT == 0:
            return value
        # Rows of a buffer may begin between the addresses that TensorRT takes.
        whole = new_array(self._device.arena, value.shape, value.dtype)
        self._device.cuda.copy(whole.address, value.address, value.nbytes)
        return whole

    def _output(
        self,
        binding: Binding,
        shape: Shape,
        bound: DeviceArray | None,
        inputs: Mapping[str, DeviceArray],
    ) -> DeviceArray:
        """Where an output is written: where the caller wants it, or into a new array.

        Rows of a cache may begin between the addresses that TensorRT takes; then it writes beside,
        and what it wrote is copied.
        """
        if bound is not None and (bound.shape != shape or bound.dtype != binding.dtype):
            raise LvlmError(
                f"{self._label}, {binding.name}: the engine gives {binding.dtype} {list(shape)} and"
                f" the buffer for it is {bound.dtype} {list(bound.shape)}"
            )
        if bound is None or (binding.alias is None and not _bindable(bound)):
            made = new_array(self._device.arena, shape, binding.dtype)
        else:
            made = bound
        if binding.alias is not None and made.address != inputs[binding.alias].address:
            raise LvlmError(
                f"{self._label}, {binding.name}: the engine updates {binding.alias} in place and"
                " both must be one buffer"
            )
        return made

    def _run(self, profile: int, values: Mapping[str, DeviceArray]) -> None:
        cuda, scratch = self._device.cuda, self._device.scratch
        bindings = tuple((name, value.address, value.shape) for name, value in values.items())
        call = Call(profile, bindings, scratch.address)
        action = self.policy.decide(call)
        if action is Action.REPLAY:
            cuda.launch(self.policy.graph(call))
            return
        context = self._context(profile, action is Action.CAPTURE)
        self._device.library.logger.errors.clear()
        self._tell(context, values)
        self._execute(context)
        if action is Action.CAPTURE:
            self._capture(context, call)

    def _capture(self, context: _Context, call: Call) -> None:
        """Write a call down that was just executed: by then all its kernels are compiled."""
        cuda = self._device.cuda
        ask = getattr(context.context, "is_stream_capturable", None)  # TensorRT-RTX from 1.2
        if ask is not None and not ask(cuda.stream):
            self.policy.refuse(call)
            return
        cuda.begin_capture()
        try:
            self._execute(context)
        finally:
            graph = cuda.end_capture()
        self.policy.keep(call, graph)

    def _execute(self, context: _Context) -> None:
        if not context.context.execute_async_v3(self._device.cuda.stream):
            raise LvlmError(
                f"{self._device.library.title} cannot run {self._label}:"
                f" {self._device.library.complaint()}"
            )

    def _context(self, profile: int, captures: bool) -> _Context:
        """A profile's context. A captured call has one of its own, whose state nothing changes."""
        key = (profile, captures)
        if key not in self._contexts:
            library, engine = self._device.library, self._engine
            context = library.execution_context(engine, captures, self._device.kernels)
            if context is None or not context.set_optimization_profile_async(
                profile, self._device.cuda.stream
            ):
                raise LvlmError(
                    f"{library.title} makes no context for {self._label}: {library.complaint()}"
                )
            self._contexts[key] = _Context(context)
        return self._contexts[key]

    def _profile_of(self, shapes: dict[str, Shape]) -> tuple[int, dict[str, Shape]]:
        """Profile and output shapes for input shapes; those of the last requests are remembered."""
        key = tuple(shapes.values())
        if key not in self._known:
            profile = choose_profile(self._bindings, shapes, self._label)
            made = self._output_shapes(profile, shapes)
            if len(self._known) >= 2 * max(1, self._engine.num_optimization_profiles):
                self._known.clear()
            self._known[key] = (profile, made)
        return self._known[key]

    def _output_shapes(self, profile: int, shapes: dict[str, Shape]) -> dict[str, Shape]:
        context = self._context(profile, False)
        self._tell_shapes(context, shapes)
        # Raises for what it finds wrong itself; names what is missing otherwise.
        try:
            missing = context.context.infer_shapes()
        except RuntimeError as error:
            raise LvlmError(f"{self._label}: {' '.join(str(error).split())}") from None
        if missing:
            raise LvlmError(f"{self._label}, {missing[0]}: its shape is not known")
        return {name: tuple(context.context.get_tensor_shape(name)) for name in self.outputs}

    def _tell_shapes(self, context: _Context, shapes: Mapping[str, Shape]) -> None:
        for name in self.inputs:
            if context.shapes.get(name) != shapes[name]:
                if not context.context.set_input_shape(name, shapes[name]):
                    raise LvlmError(
                        f"{self._label}, {name}: {list(shapes[name])} is refused by"
                        f" {self._device.library.title}: {self._device.library.complaint()}"
                    )
                context.shapes[name] = shapes[name]

    def _tell(self, context: _Context, values: Mapping[str, DeviceArray]) -> None:
        scratch = self._device.scratch
        self._tell_shapes(context, {name: values[name].shape for name in self.inputs})
        if context.scratch != (scratch.address, scratch.size_bytes):
            context.context.set_device_memory(scratch.address, scratch.size_bytes)
            context.scratch = (scratch.address, scratch.size_bytes)
        for name, value in values.items():
            if context.addresses.get(name) != value.address:
                if not context.context.set_tensor_address(name, value.address):
                    raise LvlmError(
                        f"{self._label}, {name}: its address is refused by"
                        f" {self._device.library.title}: {self._device.library.complaint()}"
                    )
                context.addresses[name] = value.address
