"""What graphs/export.py takes from the inside of torch."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType

import pytest

INSIDE = "torch.onnx._internal.exporter"
# Function and the parameters that graphs/export.py gives it.
USED = {
    "_core.export": {
        *("registry", "dynamic_shapes", "input_names", "output_names", "opset_version"),
        *("optimize", "verbose"),
    },
    "_registration.ONNXRegistry.from_torchlib": {"opset_version"},
}


def moved(package: str) -> list[str]:
    """What is no longer where export.py looks for it."""
    lines = []
    for path, parameters in USED.items():
        file, *names = path.split(".")
        try:
            found: object = importlib.import_module(f"{package}.{file}")
            for name in names:
                found = getattr(found, name)
            missing = parameters - inspect.signature(found).parameters.keys()  # type: ignore[arg-type]
        except (ImportError, AttributeError) as error:
            lines.append(f"{path}: {error}")
        else:
            lines += [f"{path} has no parameter {name}" for name in sorted(missing)]
    return lines


def test_torch_has_the_exporter_where_we_look_for_it() -> None:
    lines = moved(INSIDE)
    if lines:
        pytest.fail(
            f"torch moved the exporter: {'; '.join(lines)}. Mend `trace` in graphs/export.py, and"
            " the range of torch versions in pyproject.toml"
        )


def test_a_move_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: no module, no function, no parameter."""
    elsewhere = ModuleType("elsewhere._core")
    elsewhere.export = lambda registry, **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    monkeypatch.setitem(sys.modules, "elsewhere._core", elsewhere)
    lines = moved("elsewhere")
    assert "_core.export has no parameter input_names" in lines
    assert "_core.export has no parameter registry" not in lines
    assert lines[-1].startswith("_registration.ONNXRegistry.from_torchlib: No module named")
    assert moved("torch.nowhere")[0].startswith("_core.export: No module named")
