"""Which backend runs a bundle where the user leaves it open.

TensorRT where the bundle has engines, their library is installed and a GPU answers; else ONNX
Runtime. Engines that are there and do not fit this library or GPU are no reason to choose another
backend: they are refused with the command that builds them anew, so that nobody measures the wrong
thing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lvlm_runtime.engines.record import engine_targets
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.tensorrt.library import MODULES

AUTO = "auto"


def choose_backend(bundle: Path, name: str, device: str) -> str:
    """The backend for a bundle.

    Args:
        bundle: Its directory.
        name: What the user asked for; anything but ``auto`` is taken as it is.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        A key of ``lvlm_runtime.backends.BACKENDS``.
    """
    if name != AUTO:
        return name
    return "onnxruntime" if why_no_engines(bundle, device) is not None else "tensorrt"


def why_no_engines(bundle: Path, device: str) -> str | None:
    """None where TensorRT can be tried, else what is missing, in a few words."""
    if device == "cpu":
        return "the CPU was asked for"
    targets = engine_targets(bundle)
    if not targets:
        return "the bundle has no engines"
    if not any(importlib.util.find_spec(MODULES[target]) for target in targets):
        return f"{' and '.join(MODULES[target] for target in targets)} is not installed"
    from lvlm_runtime.tensorrt.cuda import open_driver

    try:
        open_driver()
    except LvlmError as error:
        return str(error)
    return None
