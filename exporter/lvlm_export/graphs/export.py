"""From a torch module to an ONNX graph whose weights lie in the bundle's weight file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from lvlm_export.graphs.element_types import onnx_dtype
from lvlm_export.graphs.names import name_axes, name_nodes, number_nodes
from lvlm_export.graphs.passes import Rewrite
from lvlm_export.graphs.passes.fold_weights import fold_weight_slices, fold_weight_transposes
from lvlm_export.graphs.passes.quantise_weights import quantise_weights
from lvlm_export.graphs.trace import Signature, trace
from lvlm_export.graphs.weight_use import Store, WeightUse
from lvlm_runtime.bundle.bundle import WEIGHTS

# Initialisers up to this size stay in the graph file; a few kilobytes at most per graph.
INLINE_BYTES = 1024


def export_graph(
    module: nn.Module,
    arguments: tuple[Any, ...],
    signature: Signature,
    path: Path,
    names: Mapping[int, str],
    store: Store | None,
    rewrites: Sequence[Rewrite] = (),
    formats: Mapping[str, str] | None = None,
) -> None:
    """Trace ``module`` and write its graph.

    Args:
        module: A subgraph or a reducer.
        arguments: Example inputs; only shapes and dtypes matter.
        signature: Names and dynamic axes.
        path: The ``.onnx`` file to write, beside the weight file.
        names: ``id(parameter or module) -> name`` in the whole model, for the store and the nodes.
        store: The weight file, or None for a weight-free graph, which is then self-contained.
        rewrites: What dialect and target ask for (``passes.rewrites``).
        formats: Weights that are stored as integers (``quantise.quantised_weights``).
    """
    with _quiet():
        model = trace(module, arguments, signature).model
    model.graph.name = path.stem
    name_axes(model.graph, signature.dynamic_shapes)
    uses = _detach_parameters(model.graph, module, names)
    with _quiet():
        optimizer.optimize(model)
        # A reducer's nodes without its site and counts, which its graph and file say.
        name_nodes(model.graph, module, names, path.stem.partition("@")[0])
        for rewrite in rewrites:
            rewrite(model)
    fold_weight_slices(model.graph, uses)
    fold_weight_transposes(model.graph, uses)
    quantise_weights(model.graph, uses, formats or {})
    number_nodes(model.graph)
    if store is None:
        assert not uses, f"{path.name} is to be weight-free but holds {sorted(uses)[:3]}"
    else:
        _attach(model.graph, uses, store, module)
    _strip(model)
    model.producer_name = "lvlm-export"
    ir.save(model, path)


def _detach_parameters(
    graph: ir.Graph, module: nn.Module, names: Mapping[int, str]
) -> dict[str, WeightUse]:
    """Rename parameters to their names in the whole model and take their (unset) values away.

    Without values the optimiser cannot fold them, so it never looks into unset memory.
    """
    uses = {}
    for local, parameter in module.named_parameters(remove_duplicate=False):
        value = graph.initializers.get(local)
        if value is None:
            continue
        full = names[id(parameter)]
        value.const_value = None
        value.name = full
        uses[full] = WeightUse(full, parameter.dtype)
    return uses


def _attach(
    graph: ir.Graph, uses: Mapping[str, WeightUse], store: Store, module: nn.Module
) -> None:
    """Point every initialiser that is not tiny at the weight file."""
    for value in graph.initializers.values():
        use = uses.get(value.name or "")
        if use is not None:
            ref = store.place(use)
        elif value.const_value is not None and value.const_value.nbytes > INLINE_BYTES:
            ref = store.put(_as_torch(value.const_value))
        else:
            continue
        value.const_value = ir.ExternalTensor(
            WEIGHTS,
            ref.offset,
            ref.size_bytes,
            onnx_dtype(ref.dtype),
            shape=ir.Shape(ref.shape),
            name=value.name or "",
            base_dir=store.path.parent,
        )
        value.shape = ir.Shape(ref.shape)


def _as_torch(constant: ir.TensorProtocol) -> Tensor:
    array = constant.numpy().copy()
    if constant.dtype == ir.DataType.BFLOAT16:  # of ml_dtypes, which torch does not read
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _strip(model: ir.Model) -> None:
    """Drop the tracer's notes (stack traces, module paths); they are most of a small graph.

    The nodes keep their names, which say the module.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    boundary = {*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()}
    for value in boundary:
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in boundary:
                # Every consumer infers inner shapes itself.
                value.shape, value.type = None, None


def full_names(model: nn.Module) -> dict[int, str]:
    """``id(parameter or module) -> name`` in a whole model; what is tied keeps its first name."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), name)
    return names


def example(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An example input: its own storage, so that the tracer does not take two inputs for one."""
    return torch.zeros(tuple(shape), dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's notes about absent torchvision and skipped deduplication off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
