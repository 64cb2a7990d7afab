"""A TensorRT whose engines are ONNX Runtime sessions on addresses of ``fake_cuda``.

What is assumed of the real one, from its documentation:
    - a context keeps shapes and addresses until it gets others, takes only shapes within its
      profile, and works only in memory that it was given, which must be large enough;
    - addresses begin on 256 bytes;
    - an engine whose caches have a static length updates them in place.
What is not modelled: time, kernels that are compiled late, and whether NVIDIA's kernels are right.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from fake_cuda import ALIGNMENT, FakeDriver
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import plan_engines
from lvlm_runtime.engines.record import (
    SCHEMA,
    EngineRecord,
    directory_of,
    engine_file,
    write_record,
)
from lvlm_runtime.graphs.reader import read_model
from lvlm_runtime.tensorrt.library import Library

VERSION = "1.7.0"
CAPABILITY = "sm89"
SCRATCH_BYTES = 4096


class FakeContext:
    """``IExecutionContext``."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        inside = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        return inside and len(shape) == len(low)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = self.shapes["hidden"][1] if "hidden" in self.shapes else 0
        # No shape here depends on values, but the filled length must be a possible one.
        feeds = {
            each: np.full(
                self.shapes[each], rows if each == "kv_length" else 0, self.engine.dtypes[each]
            )
            for each in self.engine.inputs
        }
        return tuple(self.engine.run(feeds)[name].shape)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory != 0 and memory % ALIGNMENT == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.memory[1] < self.engine.device_memory_size_v2:
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.engine.driver.submit(lambda: self.engine.execute(shapes, addresses))
        return set(addresses) == set(self.engine.names)


class FakeConfig:
    """``IRuntimeConfig``, and the ``IRuntimeCache`` that it makes."""

    def __init__(self) -> None:
        self.content = b""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        assert strategy == "user"

    def create_runtime_cache(self) -> FakeConfig:
        return FakeConfig()

    def set_runtime_cache(self, cache: FakeConfig) -> bool:
        cache.content += b"kernel "
        return True

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class FakeEngine:
    """``ICudaEngine``: a graph through ONNX Runtime, on addresses."""

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, driver: FakeDriver, content: dict[str, Any]) -> None:
        self.driver = driver
        path = Path(content["graph"])
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        graph = read_model(path).graph
        self.inputs = {each.name: each for each in graph.inputs}
        outputs = {each.name: each for each in graph.outputs}
        self.names = (*self.inputs, *outputs)
        infos = {**self.inputs, **outputs}
        self.dtypes = {name: np.dtype(info.element_type) for name, info in infos.items()}
        self.profiles = content["profiles"] or [{}]
        self.dims = {
            name: tuple(
                content["fixed"].get(name, {}).get(str(axis), size if type(size) is int else -1)
                for axis, size in enumerate(info.dims)
            )
            for name, info in infos.items()
        }
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.profiles)
        self.executed = 0

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return self.dtypes[name]

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.dims[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        found = self.profiles[profile].get(name)
        return [self.dims[name]] * 3 if found is None else [tuple(each) for each in found]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        past = name.replace("present", "past")
        same = past != name and past in self.inputs and -1 not in self.dims[past]
        return past if same else None

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, how: Any) -> FakeContext:
        return FakeContext(self)

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = [each.name for each in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds), strict=True))

    def execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {}
        for name in self.inputs:
            array = np.zeros(shapes[name], self.dtypes[name])
            ctypes.memmove(array.ctypes.data, addresses[name], array.nbytes)
            feeds[name] = array
        for name, value in self.run(feeds).items():
            dense = np.ascontiguousarray(value)
            ctypes.memmove(addresses[name], dense.ctypes.data, dense.nbytes)
        self.executed += 1


def library(driver: FakeDriver, target: str = "rtx") -> Library:
    """A TensorRT whose engine files are what ``write_engines`` wrote."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: Any) -> FakeEngine | None:
            try:
                return FakeEngine(driver, json.loads(bytes(content)))
            except ValueError:
                self.logger.errors.append("magic tag\n does not match")
                return None

    module = SimpleNamespace(
        __version__=VERSION,
        Runtime=Runtime,
        nptype=lambda kind: kind,
        DataType=SimpleNamespace(BF16=object()),
        TensorLocation=SimpleNamespace(DEVICE="device", HOST="host"),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", LAZY="lazy"),
    )
    return Library(target, module, SimpleNamespace(errors=[]))


def write_engines(bundle: Bundle, limits: Limits, target: str = "rtx") -> EngineRecord:
    """Engine files and record of a bundle, with the profiles of real ones."""
    directory = directory_of(bundle.directory, target)
    directory.mkdir(parents=True)
    engines = {}
    for spec in plan_engines(bundle, limits):
        path = directory / f"{Path(spec.graph).stem}.engine"
        content = {
            "graph": str(bundle.path(spec.graph)),
            "fixed": spec.fixed,
            "profiles": [profile.shapes for profile in spec.profiles],
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        sha256 = bundle.manifest.files[spec.graph].sha256
        engines[spec.graph] = engine_file(spec, path, sha256)
    manifest = bundle.manifest
    record = EngineRecord(
        SCHEMA,
        manifest.content_key,
        target,
        VERSION,
        None,
        (CAPABILITY,),
        None,
        manifest.precision,
        limits,
        engines,
    )
    write_record(bundle.directory, record)
    return record
