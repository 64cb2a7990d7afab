"""Tracing once gives what torch.onnx gives by tracing twice; what trace.py takes from torch's inside."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch.onnx._internal.exporter import _core

from lvlm_export.graphs import trace as tracing
from lvlm_export.graphs.trace import OPSET, Signature, trace

INSIDE = "torch.onnx._internal.exporter"
# Function and the parameters that graphs/trace.py gives it by name.
USED: dict[str, set[str]] = {
    "_capture_strategies.TorchExportNonStrictStrategy": set(),
    "_core._exported_program_to_onnx_program": {"registry"},
    "_decomp.get_onnx_implemented_overloads": set(),
    "_flags.set_onnx_exporting_flag": set(),
    "_fx_passes.decompose_with_registry": set(),
    "_fx_passes.remove_assertion_nodes": set(),
    "_fx_passes.insert_type_promotion_nodes": set(),
    "_ir_passes.rename_inputs": set(),
    "_ir_passes.rename_outputs": set(),
    "_registration.ONNXRegistry.from_torchlib": {"opset_version"},
}


def moved(package: str) -> list[str]:
    """What is no longer where trace.py looks for it."""
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
            f"torch moved the exporter: {'; '.join(lines)}. Mend graphs/trace.py, and"
            " the range of torch versions in pyproject.toml"
        )


def test_a_move_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: no module, no function, no parameter."""
    elsewhere = ModuleType("elsewhere._core")
    elsewhere._exported_program_to_onnx_program = lambda program: program  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    monkeypatch.setitem(sys.modules, "elsewhere._core", elsewhere)
    lines = moved("elsewhere")
    assert lines[1] == "_core._exported_program_to_onnx_program has no parameter registry"
    assert lines[-1].startswith("_registration.ONNXRegistry.from_torchlib: No module named")
    assert moved("torch.nowhere")[0].startswith(
        "_capture_strategies.TorchExportNonStrictStrategy: No module named"
    )


class Spelled(nn.Module):
    """Every spelling that ``lower`` changes: casts, slices, masks, reshapes, an assertion."""

    def forward(self, hidden: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        torch._check(hidden.shape[0] > 1)
        whole = hidden[:, :].contiguous().to(torch.float32).to(hidden.device)
        part = whole.narrow(1, 1, 3).flatten(1).reshape(hidden.shape[0], -1)
        first = hidden.narrow(0, 0, kept.shape[0])
        mask = (kept > 1) & (kept < 5) | (kept == 7)
        return part.to(torch.float16), first.flatten(1) * mask.to(hidden.dtype)[:, None]


class Unknown(nn.Module):
    """An operator that ONNX has no translation of."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.special.expit(hidden).frac() + nn.functional.celu(hidden).logaddexp(hidden)


def spelled() -> tuple[nn.Module, tuple[Tensor, ...], Signature]:
    rows, few = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "few"))
    arguments = (torch.zeros(6, 5, 4), torch.zeros(4, dtype=torch.int64))
    return Spelled(), arguments, Signature(("hidden", "kept"), ("a", "b"), ({0: rows}, {0: few}))


def by_torch(module: nn.Module, arguments: Any, signature: Signature) -> ir.Model:
    return _core.export(
        module.eval(),
        arguments,
        registry=tracing.registry(),
        dynamic_shapes=signature.dynamic_shapes,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        opset_version=OPSET,
        optimize=False,
        verbose=False,
    ).model


def operators(model: ir.Model) -> Counter[str]:
    optimizer.optimize(model)
    return Counter(node.op_type for node in model.graph if node.op_type != "Constant")


def test_the_graph_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is traced anew, and nothing more or less is in the graph."""
    twice = []
    monkeypatch.setattr(
        tracing._fx_passes, "decompose_with_registry", lambda *given: twice.append(given)
    )
    ours = trace(*spelled())
    assert not twice
    monkeypatch.undo()
    theirs = by_torch(*spelled())
    feeds = {
        "hidden": torch.randn(9, 5, 4).numpy(),
        "kept": torch.tensor([1, 3, 7, 5, 2, 4, 9]).numpy(),
    }
    expected = Spelled()(*map(torch.from_numpy, feeds.values()))
    for got, wanted in zip(run(ours.model, feeds), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted)
    assert operators(ours.model) == operators(theirs)


def run(model: ir.Model, feeds: Any) -> Any:
    import onnxruntime

    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_what_onnx_has_no_operator_for_is_decomposed_as_torch_does_it() -> None:
    signature = Signature(("hidden",), ("out",), ({0: torch.export.Dim("rows")},))
    arguments = (torch.zeros(3, 4),)
    ours = trace(Unknown(), arguments, signature)
    hidden = torch.randn(5, 4)
    (got,) = run(ours.model, {"hidden": hidden.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), Unknown()(hidden))
    assert operators(ours.model) == operators(by_torch(Unknown(), arguments, signature))
