"""The decomposed dialect: the traced graph in plain operators of opset 20, for TensorRT before 10.15.

``Attention`` becomes two products around a float32 softmax, and the cache that ``TensorScatter``
writes becomes two things: the filled rows as an input, and the new rows alone as an output, which
the runtime binds behind them (DESIGN §4.9). Caches are sequence-major ``[1, length, Hkv, D]``, so
that a range of rows is one piece of memory. Norms need nothing: RMSNorm is traced in float32 and
``LayerNormalization`` (opset 17) computes in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from lvlm_runtime.errors import LvlmError

OPSET = 20
IR_VERSION = 9  # of ONNX 1.15, which brought opset 20
SWAP = [0, 2, 1, 3]  # heads and rows
# Added to the score of a row that is not to be seen; minus infinity would do, and print worse.
HIDDEN = float(np.finfo(np.float32).min)
# Operators whose versions 21 to 24 only take more element types, by the ONNX changelog.
_WIDENED = """
    Cast Constant ConstantOfShape Conv Cos EyeLike Flatten Identity Pad Reshape Shape Sin Size Squeeze
    TopK Transpose Unsqueeze
"""
WIDENED = frozenset(_WIDENED.split())


class Builder(Tape):  # type: ignore[misc]
    """Nodes on a tape, an operator per method: ``op.Concat(a, b, axis=1)``."""

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes)


def decompose_attention(model: ir.Model) -> None:
    """``Attention`` in plain operators; over a cache, the cache as filled and new rows."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "Attention"]
    masks: dict[int, ir.Value] = {}
    for node in nodes:
        if len(node.inputs) == 7:
            _decompose_cached(graph, node, masks)
        else:
            _decompose_plain(graph, node)
    RemoveUnusedNodesPass()(model)
    if masks:
        # Their shape says where rows go and how many are filled.
        for name in ("write_index", "kv_length"):
            graph.inputs.remove(next(value for value in graph.inputs if value.name == name))


def take_sequence_major(model: ir.Model, name: str) -> None:
    """Turn an input ``[1, H, N, D]`` into ``[1, N, H, D]``, as the cache of this dialect lies."""
    graph = model.graph
    value = next(each for each in graph.inputs if each.name == name)
    users = [(usage.node, usage.idx) for usage in value.uses()]
    _swap_shape(value)
    if not users:
        return
    node = ir.node("Transpose", [value], {"perm": SWAP})
    graph.insert_before(graph[0], node)
    for user, index in users:
        user.replace_input_with(index, node.outputs[0])


def convolve_in_float32(model: ir.Model) -> None:
    """``Conv`` on bfloat16, which came with opset 22, between casts; the patch embedding is one."""
    for node in [node for node in model.graph if node.op_type == "Conv"]:
        if _element_type(node) != ir.DataType.BFLOAT16:
            continue
        op = Builder()
        for index, value in enumerate(node.inputs):
            node.replace_input_with(index, op.Cast(value, to=ir.DataType.FLOAT))
        model.graph.insert_before(node, op.nodes)
        out = node.outputs[0]
        narrow = ir.node("Cast", [out], {"to": ir.DataType.BFLOAT16})
        narrow.outputs[0].shape, narrow.outputs[0].type = out.shape, out.type
        ir.convenience.replace_all_uses_with(out, narrow.outputs[0])
        narrow.replace_input_with(0, out)
        model.graph.insert_after(node, narrow)
        out.type = ir.TensorType(ir.DataType.FLOAT)


def lower_opset(model: ir.Model) -> None:
    """Declare opset 20, after a look at every node.

    Raises:
        LvlmError: A node means something else there, or does not exist; names it.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        reason = _why_not(node, model.opset_imports[""])
        if reason is not None:
            raise LvlmError(f"{node.op_type} of {node.outputs[0].name} {reason} opset {OPSET}")
    model.opset_imports.clear()
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _why_not(node: ir.Node, traced: int) -> str | None:
    """Why a node cannot be written in the older opset; None where it can."""
    if node.domain not in ("", "ai.onnx"):
        return f"is of {node.domain}, which is no part of"
    try:
        old = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return "does not exist in"
    new = onnx.defs.get_schema(node.op_type, traced)
    if old.since_version != new.since_version and node.op_type not in WIDENED:
        return f"(version {new.since_version}) is not known to mean the same in"
    extra = set(node.attributes) - set(old.attributes)
    return f"has attribute {min(extra)}, which is not in" if extra else None


def _decompose_plain(graph: ir.Graph, node: ir.Node) -> None:
    """Every token sees every token: ``[B, H, S, D]`` three times, and scores to add or none."""
    op = Builder()
    query, key, value, *given = node.inputs
    keys = op.Transpose(key, perm=[0, 1, 3, 2])
    mask = given[0] if given else None
    if mask is not None and _element_type(node) != ir.DataType.FLOAT:
        mask = op.Cast(mask, to=ir.DataType.FLOAT)
    out = _attend(op, query, keys, value, mask, node)
    graph.insert_before(node, op.nodes)
    _replace(graph, node, out)


def _decompose_cached(graph: ir.Graph, node: ir.Node, masks: dict[int, ir.Value]) -> None:
    """Causal, grouped-query, over filled and new rows.

    The heads that share a key stand side by side, so a group's queries are rows of one product
    and no key is repeated: ``[1, Hkv, G*S, D]`` times ``[1, Hkv, D, L]``.
    """
    scatters = [_producer(value) for value in node.inputs[1:3]]
    heads, head_dim = _sizes(node.inputs[0], 1, 3)
    (kv_heads,) = _sizes(scatters[0].outputs[0], 1)
    group = heads // kv_heads
    past = scatters[0].inputs[0]
    assert past is not None
    if group not in masks:
        masks[group] = _causal_mask(graph, past, group)
    op = Builder()
    rows = [op.Transpose(scatter.inputs[1], perm=SWAP) for scatter in scatters]
    joined = [
        op.Concat(scatter.inputs[0], new, axis=1)
        for scatter, new in zip(scatters, rows, strict=True)
    ]
    query = op.Reshape(node.inputs[0], _ints(op, 1, kv_heads, -1, head_dim))
    keys, values = op.Transpose(joined[0], perm=[0, 2, 3, 1]), op.Transpose(joined[1], perm=SWAP)
    out = _attend(op, query, keys, values, masks[group], node)
    out = op.Reshape(out, _ints(op, 1, heads, -1, head_dim))
    graph.insert_before(node, op.nodes)
    _replace(graph, node, out)
    for scatter, new in zip(scatters, rows, strict=True):
        cache = scatter.inputs[0]
        assert cache is not None
        _swap_shape(cache)
        new.shape = ir.Shape([1, "sequence", kv_heads, head_dim])
        _replace(graph, scatter, new, keep_shape=False)


def _attend(
    op: Builder,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    mask: ir.Value | None,
    attention: ir.Node,
) -> ir.Value:
    """``softmax(scale * query @ keys + mask) @ values``, the softmax in float32."""
    kind, scale = _element_type(attention), attention.attributes["scale"].as_float()
    wide = kind == ir.DataType.FLOAT
    # Before the product, so that float16 does not overflow; bfloat16 cannot, but rounds the scale.
    late = kind == ir.DataType.BFLOAT16
    factor = np.array(scale, np.float32 if late else kind.numpy())
    if not late:
        query = op.Mul(query, op.Constant(value=ir.tensor(factor)))
    scores = op.MatMul(query, keys)
    scores = scores if wide else op.Cast(scores, to=ir.DataType.FLOAT)
    if late:
        scores = op.Mul(scores, op.Constant(value=ir.tensor(factor)))
    scores = scores if mask is None else op.Add(scores, mask)
    weights = op.Softmax(scores, axis=-1)
    weights = weights if wide else op.Cast(weights, to=kind)
    result: ir.Value = op.MatMul(weights, values)
    return result


def _element_type(node: ir.Node) -> ir.DataType:
    value = node.inputs[0]
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def _causal_mask(graph: ir.Graph, past: ir.Value, group: int) -> ir.Value:
    """``[G*S, P+S]`` float32: row s of every group sees the first P+s+1 rows."""
    op = Builder()
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    filled = op.Shape(past, start=1, end=2)
    length = op.Add(filled, op.Shape(positions, start=1, end=2))
    zero, one, axis = _scalar(op, 0), _scalar(op, 1), _ints(op, 0)
    start, stop = op.Squeeze(filled, axis), op.Squeeze(length, axis)
    columns = op.Range(zero, stop, one)
    rows = op.Range(start, stop, one)
    rows = rows if group == 1 else op.Tile(rows, _ints(op, group))
    seen = op.LessOrEqual(columns, op.Unsqueeze(rows, _ints(op, 1)))
    mask: ir.Value = op.Where(seen, _float(op, 0.0), _float(op, HIDDEN))
    graph.insert_before(graph[0], op.nodes)
    return mask


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Value, keep_shape: bool = True) -> None:
    """Put a value in the place of a node's output, a graph output included."""
    old = node.outputs[0]
    new.name, new.type = old.name, old.type
    new.shape = old.shape if keep_shape else new.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{old.name}.replaced"
    graph.remove(node, safe=True)


def _swap_shape(value: ir.Value) -> None:
    shape = value.shape
    assert shape is not None
    value.shape = ir.Shape([shape[axis] for axis in SWAP])


def _sizes(value: ir.Value | None, *axes: int) -> tuple[int, ...]:
    assert value is not None
    assert value.shape is not None
    sizes = tuple(value.shape[axis] for axis in axes)
    assert all(isinstance(size, int) for size in sizes)
    return sizes  # type: ignore[return-value]


def _producer(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    assert node.op_type == "TensorScatter"
    return node


def _ints(op: Builder, *values: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(values, np.int64)))


def _scalar(op: Builder, value: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(value, np.int64)))


def _float(op: Builder, value: float) -> Any:
    return op.Constant(value=ir.tensor(np.array(value, np.float32)))
