"""The one place that decides which TensorRT is used, and what its versions differ in.

``tensorrt`` (on a Jetson part of JetPack) and ``tensorrt_rtx`` (from PyPI) have the same API.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from lvlm_profiles.report.terminal import visible
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.operators import PARSERS, Version
from lvlm_runtime.tensorrt.kernel_cache import KernelCache

MODULES = {"rtx": "tensorrt_rtx", "trt": "tensorrt"}
TITLES = {"rtx": "TensorRT-RTX", "trt": "TensorRT"}
INSTALL = {
    "rtx": "pip install 'lvlm-export[rtx]'",
    "trt": "on a Jetson it comes with JetPack (python3-libnvinfer), elsewhere"
    " pip install 'lvlm-export[trt]'",
}
# One engine of TensorRT-RTX serves every GPU from Ampere to Blackwell that it was built for. Turing
# (sm75) is asked for by name: its reducers multiply in half precision (turing.py), and NVIDIA advises
# engines of its own for it (TensorRT-RTX support matrix).
RTX_COMPUTE_CAPABILITIES = ("sm80", "sm86", "sm89", "sm120", "sm121")
# An engine that fails on a machine without a driver also reports that, and it is not why.
_NOISE = "catchCudaError"


@dataclass(frozen=True)
class Library:
    """A loaded TensorRT.

    Attributes:
        target: ``rtx`` or ``trt``.
        module: ``tensorrt_rtx`` or ``tensorrt``.
        logger: The one logger of this process; it keeps what goes wrong.
    """

    target: str
    module: Any
    logger: Any

    @property
    def version(self) -> str:
        """As the library says it."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{TITLES[self.target]} {self.version}"

    @property
    def parser(self) -> str:
        """The operator table of this version: the newest that is not newer."""
        if self.target == "rtx":
            return "rtx"
        found = _version(self.version)
        fitting = [key for key, each in PARSERS.items() if not each.rtx and each.version <= found]
        if not fitting:
            raise LvlmError(f"{self.title} is too old; the oldest that is known is 10.3")
        return max(fitting, key=lambda key: PARSERS[key].version)

    def network_flags(self) -> int:
        """Strongly typed: precision lies in the graph. TensorRT 11 knows nothing else."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def execution_context(
        self, engine: Any, fixed_shapes: bool, kernels: KernelCache | None
    ) -> Any:
        """A context of an engine that works in memory which it is given; None if there is none.

        Args:
            engine: A loaded engine.
            fixed_shapes: Its shapes stay as they are. TensorRT-RTX compiles its kernels for the GPU
                at hand when they are first needed: at once for such a context, because a CUDA graph
                keeps what it captured, and behind a slower kernel for all shapes otherwise.
            kernels: Where TensorRT-RTX keeps what it compiled, or None to compile anew.
        """
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.target != "rtx":
            return engine.create_execution_context(managed)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        kinds = self.module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            kinds.EAGER if fixed_shapes else kinds.LAZY
        )
        if kernels is not None:
            kernels.attach(config)
        return engine.create_execution_context(config)

    def complaint(self) -> str:
        """What the library said went wrong since the last call, as one line."""
        said = [line for line in self.logger.errors if _NOISE not in line]
        self.logger.errors.clear()
        return " ".join(said[0].split()) if said else "no reason was given"


def open_library(target: str) -> Library:
    """Load the TensorRT of a target.

    Raises:
        UsageError: A target that is built by no TensorRT.
        LvlmError: It is not installed; says how to get it.
    """
    if target not in MODULES:
        raise UsageError(f"no engines for {target!r}; known: {', '.join(MODULES)}")
    return _open(target)


@cache
def _open(target: str) -> Library:
    try:
        module = importlib.import_module(MODULES[target])
    except ImportError as error:
        raise LvlmError(f"{TITLES[target]} is not installed ({error}); {INSTALL[target]}") from None
    return Library(target, module, _make_logger(module))


def _make_logger(module: Any) -> Any:
    """TensorRT keeps the first logger of a process for good, so there is one."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(message)
            if os.environ.get("LVLM_EXPORT_DEBUG"):
                # Standard output is for answers and JSON.
                print(visible(f"[{severity}] {message}"), file=sys.stderr)

    return Logger()


def _version(text: str) -> Version:
    numbers = re.findall(r"\d+", text)
    return int(numbers[0]), int(numbers[1])
