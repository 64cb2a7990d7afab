"""The attention function and cache that make Hugging Face layers trace to standard ONNX ops.

``transformers`` lets a caller register an attention function by name and hand any object with an
``update`` method as cache; nothing is patched. The traced graph holds ``Attention`` (opset 23/24)
and ``TensorScatter`` (24) nodes; what a target cannot take is rewritten later, in ``passes``.
Source: ONNX operator docs, ``Attention`` and ``TensorScatter``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "lvlm_export_onnx"

_watched: ContextVar[list[tuple[Tensor, Tensor]] | None] = ContextVar("watched", default=None)


@contextmanager
def watch_attention() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect ``(query, key)`` of every attention call inside the block, in call order.

    A vision layer does not hand keyword arguments through to its attention function, so the
    collector cannot be one; a context variable keeps it local to the caller.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    token = _watched.set(seen)
    try:
        yield seen
    finally:
        _watched.reset(token)


class CacheView:
    """The key and value caches of some decoder layers while they are traced.

    Args:
        keys: ``[1, Hkv, C, D]`` per layer.
        values: ``[1, Hkv, C, D]`` per layer.
        first_layer: Index of the first of these layers in the model.
        write_index: ``[1]`` int64, the row where new keys start.
        kv_length: ``[1]`` int64, filled rows after this call.
    """

    def __init__(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        first_layer: int,
        write_index: Tensor,
        kv_length: Tensor,
    ) -> None:
        self.keys = list(keys)
        self.values = list(values)
        self.first_layer = first_layer
        self.write_index = write_index
        self.kv_length = kv_length

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new rows ``[1, Hkv, S, D]`` at ``write_index``; called by the layer."""
        slot = layer_idx - self.first_layer
        self.keys[slot] = _scatter(self.keys[slot], key, self.write_index)
        self.values[slot] = _scatter(self.values[slot], value, self.write_index)
        return self.keys[slot], self.values[slot]


def causal_bias(size_bias: Tensor, write_index: Tensor, count: int) -> Tensor:
    """What is added to scores over a cache: ``[1, 1, S, C]``.

    Args:
        size_bias: ``[1, C]``, for every row of the cache.
        write_index: ``[1]``, the row of the first of the S new tokens.
        count: S.
    """
    columns = torch.arange(size_bias.shape[1], device=size_bias.device)
    rows = write_index + torch.arange(count, device=size_bias.device)
    hidden = torch.finfo(size_bias.dtype).min
    return torch.where(columns <= rows.unsqueeze(1), size_bias, hidden)[None, None]


def seen_bias(
    seen_to: Tensor, cache: Tensor, size_bias: Tensor | None, seen_from: Tensor | None = None
) -> Tensor:
    """What is added to scores over a cache of which every row sees a part: ``[1, 1, S, C]``.

    Args:
        seen_to: ``[S]``, how many rows of the cache each of the new tokens sees.
        cache: ``[1, Hkv, C, D]``, one of the caches.
        size_bias: ``[1, C]``, added for every row of the cache; None for nothing.
        seen_from: ``[S]``, the first of the rows that it sees; None for the first of all.
    """
    columns = torch.arange(cache.shape[2], device=cache.device)
    seen = columns < seen_to.unsqueeze(1)
    if seen_from is not None:
        seen = seen & (columns >= seen_from.unsqueeze(1))
    shown = cache.new_zeros(()) if size_bias is None else size_bias
    return torch.where(seen, shown, torch.finfo(cache.dtype).min)[None, None]


def _scatter(cache: Tensor, rows: Tensor, write_index: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, rows, write_index),
        {"axis": 2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def onnx_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    kv_length: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Emit one ONNX ``Attention`` node; only for tracing, it computes nothing.

    Args:
        module: The attention module (unused; the registry's signature).
        query: ``[B, H, S, D]``.
        key: ``[B, Hkv, N, D]``: the tokens themselves, or a cache when ``kv_length`` is given.
        value: As ``key``.
        attention_mask: ``[B, 1, S, N]`` to add to the scores, or None. Over a cache it carries
            causality too (``causal_bias``, ``seen_bias``): TensorRT-RTX refuses a node that has both.
        scaling: Factor on the products.
        kv_length: ``[1]`` int64, filled rows of the cache; without a mask the node is causal.

    Returns:
        ``[B, S, H, D]`` and None for the weights that no fused kernel returns.
    """
    seen = _watched.get()
    if seen is not None:
        seen.append((query, key))
    inputs: tuple[Tensor | None, ...] = (query, key, value)
    attrs: dict[str, Any] = {"scale": scaling}
    if kv_length is not None:
        inputs = (*inputs, attention_mask, None, None, kv_length)
        if attention_mask is None:
            attrs["is_causal"] = 1
    elif attention_mask is not None:
        inputs = (*inputs, attention_mask)
    version = 23 if kv_length is None else 24
    out = torch.onnx.ops.symbolic(
        "Attention", inputs, attrs, dtype=query.dtype, shape=query.shape, version=version
    )
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, onnx_attention)
