"""Rewrites of the traced graph, one per file.

The traced graph is standard ONNX (opset 24) that TensorRT-RTX takes as it is. ``fold_weights`` is
for every target, with ``graphs.export``; the table says what else a target runs faster and what a
dialect is written in. A rewrite of a fusion leaves a graph without its pattern as it is; one that
finds half of what it expects raises ``PassError``. Gains are CPU time of one thread (EPYC with
AVX-512, onnxruntime 1.31, fp32, Qwen2-0.5B's shapes).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from lvlm_export.graphs.passes import (
    convolve_in_float32,
    decompose_attention,
    fuse_rms_norm,
    fuse_rotary,
    group_query,
    lower_opset,
    take_sequence_major,
)

# Changes a model in place and says whether it did.
Rewrite = Callable[[ir.Model], bool]

# In the order they are applied. The traced dialect, opset24, needs none of its own, and what a
# target runs faster is of that dialect or the target's own.
DIALECT_REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "decomposed": (
        decompose_attention.decompose_attention,
        convolve_in_float32.convolve_in_float32,
        take_sequence_major.take_sequence_major,
        lower_opset.lower_opset,
    ),
}
TARGET_REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "cpu": (
        fuse_rms_norm.fuse_rms_norm,
        fuse_rotary.fuse_rotary_embedding,
        group_query.use_group_query_attention,
    ),
}
CACHE_REWRITES: tuple[Rewrite, ...] = (take_sequence_major.take_sequence_major,)


def rewrites(target: str, dialect: str, reads_cache: bool = False) -> tuple[Rewrite, ...]:
    """The rewrites of a graph, in the order they are applied; most graphs need none.

    Args:
        target: Key in ``TARGETS``.
        dialect: Key in ``DIALECTS``.
        reads_cache: The graph takes a buffer of the key-value cache as ``key``; only then are
            ``CACHE_REWRITES`` among them.
    """
    table = DIALECT_REWRITES.get(dialect) or TARGET_REWRITES.get(target, ())
    return tuple(each for each in table if reads_cache or each not in CACHE_REWRITES)
