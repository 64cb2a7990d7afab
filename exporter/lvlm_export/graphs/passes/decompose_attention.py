"""The decomposed dialect: attention in plain operators, for TensorRT before 10.15.

``Attention`` becomes two products around a float32 softmax, and the cache that ``TensorScatter``
writes becomes two things: the filled rows as an input, and the new rows alone as an output, which
the runtime binds behind them (DESIGN §4.9). Caches are sequence-major ``[1, length, Hkv, D]``, so
that a range of rows is one piece of memory. Norms need nothing: RMSNorm is traced in float32 and
``LayerNormalization`` (opset 17) computes in it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lvlm_export.graphs.names import scope_of
from lvlm_export.graphs.passes._shared import (
    SWAP,
    Builder,
    RowMask,
    attention_scale,
    cache_writes,
    element_type,
    graph_input,
    over_cache,
    row_mask,
    sizes,
    swap_heads_and_rows,
    take_place,
)
from lvlm_export.graphs.passes.errors import PassError

NAME = "decompose_attention"
# Added to the score of a row that is not to be seen; minus infinity would do, and print worse.
HIDDEN = float(np.finfo(np.float32).min)
# Rows of a cache when a call has added its own.
FILLED = "filled"
# What places rows in a cache that the graph writes itself, and counts them.
PLACES = ("write_index", "kv_length")
# What rows see, by the queries that share a key and whether their layer has a window.
Masks = dict[tuple[int, bool], ir.Value]


def decompose_attention(model: ir.Model) -> bool:
    """``Attention`` in plain operators; over a cache, the cache as filled and new rows.

    1. ``Attention`` without a filled length sees every token: ``[B, H, S, D]`` three times, and
       scores to add or none.
    2. ``Attention`` with one is causal over filled and new rows, by itself or by a mask over
       ``size_bias``, which becomes a row of filled and new rows too; where ``seen_to`` is given, it
       says how many of them a row sees, and ``seen_from`` which is the first. The heads that share a key stand
       side by side, so a group's queries are rows of one product and no key is repeated:
       ``[1, Hkv, G*S, D]`` times ``[1, Hkv, D, L]``.
    3. Its caches become sequence-major inputs of the filled rows, and the new rows outputs.
    4. ``write_index`` and ``kv_length`` leave the graph: the shapes say where rows go and how many
       are filled.
    5. The softmax is in float32. The scale stands before the product, so that float16 does not
       overflow; bfloat16 cannot, but rounds the scale, so there it stands behind.

    Returns:
        Whether there was one.

    Raises:
        PassError: An ``Attention`` has other inputs or attributes than these, its caches are not
            written by ``TensorScatter``, sizes are missing or no group of heads, or ``write_index``
            or ``kv_length`` is used elsewhere.
    """
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "Attention"]
    masks: Masks = {}
    for node in nodes:
        if over_cache(node):
            _decompose_cached(node, masks)
        else:
            _decompose_plain(node)
    RemoveUnusedNodesPass()(model)
    # 4.
    for name in PLACES if masks else ():
        value = graph_input(NAME, graph, name)
        for usage in value.uses():
            raise PassError(NAME, usage.node, f"{name} for the caches alone", "another use of it")
        graph.inputs.remove(value)
    return bool(nodes)


def _decompose_plain(node: ir.Node) -> None:
    # 1.
    if len(node.inputs) not in (3, 4):
        raise PassError(NAME, node, "3, 4 or 7 inputs", str(len(node.inputs)))
    query, key, value, *given = node.inputs
    (heads,), (kv_heads,) = sizes(NAME, node, query, 1), sizes(NAME, node, key, 1)
    if heads != kv_heads:
        found = f"{kv_heads} and {heads}"
        raise PassError(NAME, node, "as many heads of keys as of queries", found)
    kind, scale = element_type(NAME, node), attention_scale(NAME, node, causal=False)
    op = Builder(scope_of(node))
    keys = op.Transpose(key, perm=[0, 1, 3, 2])
    mask = given[0] if given else None
    if mask is not None and kind != ir.DataType.FLOAT:
        mask = op.Cast(mask, to=ir.DataType.FLOAT)
    out = _attend(op, query, keys, value, mask, kind, scale)
    node.graph.insert_before(node, op.nodes)
    _put(out, node)


def _decompose_cached(node: ir.Node, masks: Masks) -> None:
    # 2.
    graph, writes = node.graph, cache_writes(NAME, node)
    mask = row_mask(NAME, node)
    scale = attention_scale(NAME, node, causal=mask is None)
    heads, head_dim = sizes(NAME, node, node.inputs[0], 1, 3)
    shapes = [sizes(NAME, write, write.inputs[0], 1, 3) for write in writes]
    kv_heads = shapes[0][0]
    if heads % kv_heads:
        raise PassError(NAME, node, f"heads in groups of {kv_heads}", f"{heads} heads")
    group = heads // kv_heads
    given = mask or RowMask()
    key = group, given.seen_from is not None
    if key not in masks:
        masks[key] = _causal_mask(graph, writes[0].inputs[0], group, given)
    op = Builder(scope_of(node))
    rows = [op.Transpose(write.inputs[1], perm=SWAP) for write in writes]
    joined = [
        op.Concat(write.inputs[0], new, axis=1) for write, new in zip(writes, rows, strict=True)
    ]
    query = op.Reshape(node.inputs[0], op.constant([1, kv_heads, -1, head_dim]))
    keys, values = op.Transpose(joined[0], perm=[0, 2, 3, 1]), op.Transpose(joined[1], perm=SWAP)
    kind = element_type(NAME, node)
    out = _attend(op, query, keys, values, masks[key], kind, scale)
    out = op.Reshape(out, op.constant([1, heads, -1, shapes[1][1]]))
    graph.insert_before(node, op.nodes)
    _put(out, node)
    # 3.
    sequence = graph_input(NAME, graph, "position_ids").shape[1]
    for write, new, shape in zip(writes, rows, shapes, strict=True):
        swap_heads_and_rows(write.inputs[0])
        new.shape = ir.Shape([1, sequence, *shape])
        take_place(write.outputs[0], new, keep_shape=False)
        graph.remove(write, safe=True)


def _put(value: ir.Value, node: ir.Node) -> None:
    take_place(node.outputs[0], value)
    node.graph.remove(node, safe=True)


def _attend(
    op: Builder,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    mask: ir.Value | None,
    kind: ir.DataType,
    scale: float,
) -> ir.Value:
    """``softmax(scale * query @ keys + mask) @ values``, the softmax in float32."""
    # 5.
    wide = kind == ir.DataType.FLOAT
    late = kind == ir.DataType.BFLOAT16
    factor = op.constant(scale, np.float32 if late else kind.numpy())
    if not late:
        query = op.Mul(query, factor)
    scores = op.MatMul(query, keys)
    scores = scores if wide else op.Cast(scores, to=ir.DataType.FLOAT)
    if late:
        scores = op.Mul(scores, factor)
    scores = scores if mask is None else op.Add(scores, mask)
    weights = op.Softmax(scores, axis=-1)
    weights = weights if wide else op.Cast(weights, to=kind)
    result: ir.Value = op.MatMul(weights, values)
    return result


def _causal_mask(graph: ir.Graph, past: ir.Value, group: int, given: RowMask) -> ir.Value:
    """``[G*S, P+S]`` float32: what row s of every group sees, with ``size_bias`` added.

    These are the first P+s+1 rows, or the first ``seen_to[s]``, from ``seen_from[s]`` on.
    """
    op = Builder("causal_mask")
    positions = graph_input(NAME, graph, "position_ids")
    filled = op.Shape(past, start=1, end=2)
    length = op.Add(filled, op.Shape(positions, start=1, end=2))
    zero, one, axis = op.constant(0), op.constant(1), op.constant([0])
    start, stop = op.Squeeze(filled, axis), op.Squeeze(length, axis)
    columns = op.Range(zero, stop, one)
    rows = op.Range(start, stop, one) if given.seen_to is None else given.seen_to

    def per_query(rows: ir.Value) -> ir.Value:
        rows = rows if group == 1 else op.Tile(rows, op.constant([group]))
        column: ir.Value = op.Unsqueeze(rows, op.constant([1]))
        return column

    compare = op.LessOrEqual if given.seen_to is None else op.Less
    seen = compare(columns, per_query(rows))
    if given.seen_from is not None:
        seen = op.And(seen, op.GreaterOrEqual(columns, per_query(given.seen_from)))
    row = given.size_bias
    shown, hidden = op.constant(0.0, np.float32), op.constant(HIDDEN, np.float32)
    if row is not None:
        row.shape = ir.Shape([1, FILLED])
        shown = row if row.dtype == ir.DataType.FLOAT else op.Cast(row, to=ir.DataType.FLOAT)
    mask: ir.Value = op.Where(seen, shown, hidden)
    graph.insert_before(graph[0], op.nodes)
    return mask
