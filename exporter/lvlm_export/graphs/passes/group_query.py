"""Attention over a cache as onnxruntime's own operator for it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lvlm_export.graphs.names import scope_of
from lvlm_export.graphs.passes._shared import (
    SWAP,
    Builder,
    attention_scale,
    cache_writes,
    graph_input,
    maker,
    over_cache,
    permutation,
    row_mask,
    sizes,
    take_place,
)
from lvlm_export.graphs.passes.errors import PassError

NAME = "group_query"
MICROSOFT = "com.microsoft"
HEAD_SIZE_STEP = 8


def use_group_query_attention(model: ir.Model) -> bool:
    """``TensorScatter`` into the caches and causal ``Attention`` become ``GroupQueryAttention``.

    The standard node computes over the whole capacity of the cache, so a prefill pays for every
    row that the answer may need; this one computes over what is filled. The caches are written in
    place as before. Prefill of 800 tokens with room for 128 more 5 % faster, for 1024 more 15 %; of
    300 with room for 1024 11 %; decode the same to 13 %.
    Source: onnxruntime docs/ContribOperators.md, com.microsoft.GroupQueryAttention.

    1. ``Attention`` over a cache has a filled length and is causal, by itself or by a mask over
       ``size_bias``; any other has no length and stays, as does one whose rows say what they see,
       because the operator is always causal.
    2. Its heads are of a size that is a multiple of 8; the operator refuses other sizes, and those
       keep the standard node.
    3. Keys and values come from a ``TensorScatter`` each, whose caches and new rows the operator
       takes itself.
    4. What was made from the answer, ``Transpose`` to rows and ``Reshape``, is the operator's answer.
    5. Queries, keys and values are rows ``[1, S, H*D]``: those that the heads were made from, or
       heads turned back where rope was not fused.
    6. The filled length is one for all layers.
    7. The operator is causal by itself; of ``size_bias`` it gets the filled part, for every query.

    Returns:
        Whether there was one.

    Raises:
        PassError: 3, 4 or 6 does not hold, a size or the scale is missing, or an attention over a
            cache is not causal.
    """
    nodes = [node for node in model.graph if _fits(node)]
    if not nodes:
        return False
    # 6.
    kv_length = nodes[0].inputs[6]
    for node in nodes:
        if node.inputs[6] is not kv_length:
            found = f"{maker(node.inputs[6])} and {maker(kv_length)}"
            raise PassError(NAME, node, "one filled length for all layers", found)
    last_row, length = _lengths(nodes[0])
    # 7.
    mask = row_mask(NAME, nodes[0])
    row = None if mask is None else mask.size_bias
    bias = None if row is None else _bias(row, kv_length)
    for node in nodes:
        _replace(node, last_row, length, bias)
    model.opset_imports[MICROSOFT] = 1
    RemoveUnusedNodesPass()(model)  # the transposes to heads, and the mask
    return True


def _fits(node: ir.Node) -> bool:
    # 1.
    if not over_cache(node):
        return False
    mask = row_mask(NAME, node)
    if mask is not None and mask.seen_to is not None:
        return False
    # 2.
    (head_size,) = sizes(NAME, node, node.outputs[0], 3)
    return head_size % HEAD_SIZE_STEP == 0


def _lengths(first: ir.Node) -> tuple[ir.Value, ir.Value]:
    """``kv_length - 1`` and ``kv_length``, int32 as the node wants them; for all layers."""
    graph, kv_length = first.graph, first.inputs[6]
    op = Builder("kv_length")
    last = op.Sub(kv_length, op.constant([1]))
    casts = [op.Cast(value, to=ir.DataType.INT32) for value in (last, kv_length)]
    graph.insert_before(graph[0], op.nodes)
    return casts[0], casts[1]


def _bias(row: ir.Value, kv_length: ir.Value) -> ir.Value:
    """``[1, 1, S, L]`` of ``size_bias [1, N]``, of which L rows are filled; for all layers."""
    graph = row.graph
    assert graph is not None
    op = Builder("size_bias")
    positions = graph_input(NAME, graph, "position_ids")
    filled = op.Slice(row, op.constant([0]), kv_length, op.constant([1]))
    shape = op.Concat(op.constant([1, 1]), op.Shape(positions, start=1, end=2), kv_length, axis=0)
    bias: ir.Value = op.Expand(filled, shape)
    graph.insert_before(graph[0], op.nodes)
    return bias


def _replace(
    attention: ir.Node, last_row: ir.Value, length: ir.Value, bias: ir.Value | None
) -> None:
    graph = attention.graph
    # 1. and 3.
    factor = attention_scale(NAME, attention, causal=row_mask(NAME, attention) is None)
    key, value = cache_writes(NAME, attention)
    (heads,) = sizes(NAME, attention, attention.outputs[0], 1)
    (kv_heads,) = sizes(NAME, key, key.outputs[0], 1)
    # 4.
    transpose = _only_user(attention, "Transpose")
    joined = _only_user(transpose, "Reshape")
    # 5.
    given = (attention.inputs[0], key.inputs[1], value.inputs[1])
    rows = [_rows(attention, each) for each in given]
    # Behind the tables of a rope of its own, and positions.
    added = [] if bias is None else [None, None, None, bias]
    fused = ir.node(
        "GroupQueryAttention",
        [*rows, key.inputs[0], value.inputs[0], last_row, length, *added],
        {"num_heads": heads, "kv_num_heads": kv_heads, "scale": factor},
        domain=MICROSOFT,
        num_outputs=3,
        name=f"{scope_of(attention)}/GroupQueryAttention",
    )
    graph.insert_after(attention, fused)
    old = (joined.outputs[0], key.outputs[0], value.outputs[0])
    for before, after in zip(old, fused.outputs, strict=True):
        take_place(before, after)
    graph.remove([joined, transpose, attention, key, value], safe=True)


def _only_user(node: ir.Node, op_type: str) -> ir.Node:
    """The one node that takes what ``node`` makes."""
    users = list(node.outputs[0].consumers())
    if [each.op_type for each in users] != [op_type]:
        found = " and ".join(str(each.op_type) for each in users) or "nothing"
        raise PassError(NAME, node, f"{op_type} alone to take it", found)
    return users[0]


def _rows(attention: ir.Node, heads: ir.Value) -> ir.Value:
    """Rows ``[1, S, H*D]`` of ``heads [1, H, S, D]``: those they were made from, or made anew."""
    transpose = heads.producer()
    if transpose is not None and permutation(transpose) == SWAP:
        reshape = transpose.inputs[0].producer()
        if reshape is not None and reshape.op_type == "Reshape":
            return reshape.inputs[0]
    op = Builder(scope_of(attention))
    rows: ir.Value = op.Reshape(op.Transpose(heads, perm=SWAP), op.constant([0, 0, -1]))
    attention.graph.insert_before(attention, op.nodes)
    return rows
