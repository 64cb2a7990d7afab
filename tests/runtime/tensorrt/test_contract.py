"""What the TensorRT backend calls exists in the real bindings, and the fakes offer nothing more.

Without a GPU no engine can be loaded, so the calls themselves are checked on a machine with one
(``make test-gpu``); their names and arguments are checked here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from fake_cuda import FakeDriver
from fake_tensorrt import FakeContext, FakeEngine
from lvlm_runtime.backends import tensorrt
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt import (
    bindings as engine_bindings,
)
from lvlm_runtime.tensorrt import (
    cuda as cuda_driver,
)
from lvlm_runtime.tensorrt import (
    kernel_cache,
)
from lvlm_runtime.tensorrt import (
    library as tensorrt_library,
)
from lvlm_runtime.tensorrt import (
    runner as engine_runner,
)
from lvlm_runtime.tensorrt.cuda import open_driver

# Attributes and methods of TensorRT's objects, by the variable that holds them in this code.
HOLDERS = {
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "config": "IRuntimeConfig",
    "_cache": "IRuntimeCache",
    "cache": "IRuntimeCache",
}
MODULES = (engine_bindings, engine_runner, kernel_cache, tensorrt_library, tensorrt)
# Of the fakes themselves, not of TensorRT.
OWN = {"shapes", "addresses", "memory", "scratch", "inputs", "driver", "dtypes", "profiles"}


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def used(holder: str) -> set[str]:
    """Every attribute that the backend's modules use of a variable of this name."""
    found = set()
    for module in MODULES:
        tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            name = getattr(owner, "id", None) or getattr(owner, "attr", None)
            if name == holder:
                found.add(node.attr)
    return found


@pytest.mark.parametrize(("holder", "kind"), HOLDERS.items())
def test_every_name_exists_in_tensorrt(trt: Any, holder: str, kind: str) -> None:
    names = used(holder) - OWN - {"context"}
    assert names, holder
    assert [name for name in sorted(names) if not hasattr(getattr(trt, kind), name)] == []


def test_every_name_of_the_module_exists(trt: Any) -> None:
    for name in (
        *("Runtime", "nptype", "TensorLocation.DEVICE", "TensorIOMode.INPUT"),
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "DynamicShapesKernelSpecializationStrategy.LAZY",
    ):
        found = trt
        for part in name.split("."):
            found = getattr(found, part)


def arguments(function: Any) -> list[list[str]]:
    """Names of the arguments of every overload, from the first lines of pybind's text."""
    signatures = re.findall(rf"^(?:\d+\. )?{function.__name__}\((.*)\) ->", function.__doc__, re.M)
    found = []
    for text in signatures:
        flat = re.sub(r"\[[^\]]*\]", "", text)
        found.append([part.split(":")[0].strip() for part in flat.split(",")])
    return found


@pytest.mark.parametrize("fake", [FakeContext, FakeEngine], ids=lambda fake: fake.__name__)
def test_the_fakes_take_what_the_real_ones_take(trt: Any, fake: type) -> None:
    real = getattr(
        trt, {"FakeContext": "IExecutionContext", "FakeEngine": "ICudaEngine"}[fake.__name__]
    )
    own = {"run", "execute"}
    for name, function in inspect.getmembers(fake, inspect.isfunction):
        if name.startswith("_") or name in own:
            continue
        count = len(inspect.signature(function).parameters)
        overloads = arguments(getattr(real, name))
        assert count in {len(each) for each in overloads}, (name, overloads)


def test_every_driver_call_exists_with_as_many_arguments() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    source = Path(inspect.getfile(cuda_driver)).read_text(encoding="utf-8")
    names = set(re.findall(r'"(cu[A-Z]\w+)"', source)) | {"cuGetErrorString"}
    assert len(names) > 20
    for name in sorted(names):
        text = getattr(driver, name).__doc__.splitlines()[0]
        inside = text[text.index("(") + 1 : text.rindex(")")]
        count = len([part for part in inside.split(",") if part.strip()])
        ours = len(inspect.signature(getattr(FakeDriver, name)).parameters) - 1
        assert ours == count, (name, text)
    for kind, member in re.findall(r"\b(CU\w+)\.(CUDA_\w+|CU_\w+)", source):
        assert hasattr(getattr(driver, kind), member)
    for member in re.findall(r"(?:kinds|modes)\.(CU_\w+)", source):
        owners = (driver.CUdevice_attribute, driver.CUstreamCaptureMode)
        assert any(hasattr(owner, member) for owner in owners), member


def test_without_a_driver_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        LvlmError, match=r"cuda-python is not installed .*pip install cuda-bindings"
    ):
        open_driver()

    class NoLibrary:
        def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
            raise RuntimeError('"cuda" is an NVIDIA driver library\nand was not found')

    monkeypatch.setattr(importlib, "import_module", lambda name: NoLibrary())
    with pytest.raises(LvlmError) as caught:
        open_driver()
    assert str(caught.value) == (
        'there is no NVIDIA driver here ("cuda" is an NVIDIA driver library and was not found)'
    )

    class NoDevice(FakeDriver):
        def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
            return 1, 0

    monkeypatch.setattr(importlib, "import_module", lambda name: NoDevice())
    with pytest.raises(
        LvlmError, match=r"^no GPU can be used: CUDA: cuDeviceGet: invalid argument$"
    ):
        open_driver()
