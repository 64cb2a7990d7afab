"""Tensor functions and graph modules that reducers are composed of.

Everything here exports with constant K, no data-dependent shape and no scatter: a merge is a
weight row times the tokens, a replaced slot is a ``Where``, order comes from ``TopK``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lvlm_export.reduction import ReducerShape


def received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean over heads and query rows of the attention that each token receives.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, N, D]``.
        scale: Factor on the products.

    Returns:
        ``[B, N]`` float32.
    """
    logits = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    # Row by row, then over heads: onnxruntime takes 17 ms less of 27 than for both axes at once.
    return torch.softmax(logits, dim=-1).mean(dim=2).mean(dim=1)


def last_row_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean over heads of the attention row of the last token.

    Args:
        query: ``[1, H, S, D]`` after RoPE.
        key: ``[1, Hkv, C, D]``, a cache of which the first S rows are filled.
        scale: Factor on the products.

    Returns:
        ``[S]`` float32.
    """
    heads, length, dim = query.shape[1], query.shape[2], query.shape[3]
    kv_heads = key.shape[1]
    # Grouped-query attention: heads that share a key stand in one group.
    row = query[:, :, -1].float().reshape(1, kv_heads, heads // kv_heads, dim) * scale
    filled = key.narrow(2, 0, length).float()
    weights = torch.softmax(torch.matmul(row, filled.transpose(-1, -2)), dim=-1)
    return weights.mean(dim=(1, 2))[0]


def gather_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [B, K]`` of ``tokens [B, N, C]`` -> ``[B, K, C]``."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def ascending(index: Tensor) -> Tensor:
    """Sort ``index [B, K]`` ascending (raster order)."""
    # Float keys: integers below 2**24 are exact, and every TopK kernel takes float32.
    keys = index.to(torch.float32)
    return keys.topk(index.shape[-1], dim=-1, largest=False, sorted=True).values.to(torch.int64)


def merge_least_attended(tokens: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """ILLaVA's merge: N tokens to ``keep``.

    The r+1 lowest-scored tokens (r = N - keep) are averaged with weights r+1, r, …, 1 going up
    the ranking; the average takes the slot of the best of them and the other r are deleted.
    Source: arXiv 2412.06263, siglip_encoder.py:393-423 and modeling_qwen2.py:1026-1044.

    Args:
        tokens: ``[B, N, C]``.
        scores: ``[B, N]``, higher stays.
        keep: K, in [1, N].

    Returns:
        Tokens ``[B, K, C]`` in raster order, and the places ``[B, K]`` they came from.
    """
    count = tokens.shape[1]
    removed = count - keep
    order = scores.topk(count, dim=-1, largest=False, sorted=True).indices
    ramp = torch.arange(removed + 1, 0, -1, dtype=torch.float32, device=tokens.device)
    weights = (ramp / ramp.sum()).unsqueeze(0)
    lowest = gather_rows(tokens, order.narrow(1, 0, removed + 1)).float()
    merged = torch.matmul(weights, lowest).to(tokens.dtype)
    anchor = order.narrow(1, removed, 1)
    places = torch.arange(count, device=tokens.device).unsqueeze(0)
    replaced = torch.where((places == anchor).unsqueeze(-1), merged, tokens)
    kept = ascending(order.narrow(1, removed, keep))
    return gather_rows(replaced, kept), kept


class Selector(nn.Module):
    """What a method does to one image's tokens, whatever the site.

    Called with ``tokens [B, N, C]`` and ``scores [B, N]`` (or None where ``needs_scores`` is
    False); returns ``[B, K, C]`` in raster order and the places ``[B, K]`` they came from.
    """

    needs_scores: bool = True


class MergeLeastAttended(Selector):
    """iLLaVA's merge as a selector."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return merge_least_attended(tokens, scores, self.keep)


class KeepPlaces(Selector):
    """Keep constant places, the same in every image."""

    needs_scores = False
    places: Tensor

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, tokens: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        places = self.places.unsqueeze(0).expand(tokens.shape[0], -1)
        return tokens.index_select(1, self.places), places


class VisionReducer(nn.Module):
    """A selector inside the vision encoder; prefix tokens (CLS) are not scored or touched.

    Inputs: ``hidden [B, P+N, C]``, ``query``, ``key`` ``[B, H, P+N, D]`` of the layer.
    Output: ``hidden_out [B, P+K, C]``.
    """

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector

    def reduce(self, hidden: Tensor, scores: Tensor | None) -> Tensor:
        """As ``forward`` with the scores ``[B, P+N]`` given instead of query and key."""
        prefix, count = self.shape.prefix, self.shape.tokens_in
        tokens = hidden.narrow(1, prefix, count)
        patch_scores = None if scores is None else scores.narrow(1, prefix, count)
        kept, _ = self.selector(tokens, patch_scores)
        return torch.cat((hidden.narrow(1, 0, prefix), kept), dim=1) if prefix else kept

    def forward(self, hidden: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if not self.selector.needs_scores:
            return self.reduce(hidden, None)
        return self.reduce(hidden, received_attention(query, key, self.shape.scale))


class DecoderReducer(nn.Module):
    """A selector at the input of a decoder layer; text is never touched, positions are kept.

    Several images reduce independently, each from V to K tokens. The host knows where everything
    stands, so the new order is an input and no sort over the sequence is needed.

    Inputs:
        hidden: ``[1, S, C]`` at the input of the site's layer.
        query: ``[1, H, S, D]`` after RoPE, of the layer before.
        key: ``[1, Hkv, C, D]``, that layer's cache, first S rows filled.
        position_ids: ``[1, S]`` int64.
        visual_index: ``[n, V]`` int64, where each image's tokens stand in S.
        order: ``[S']`` int64 into the S old rows followed by the n*K reduced ones.

    Outputs:
        ``hidden_out [1, S', C]`` and ``position_ids_out [1, S']``.
    """

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector

    def reduce(
        self,
        hidden: Tensor,
        row: Tensor | None,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As ``forward`` with the attention row ``[S]`` given instead of query and key."""
        images, count = visual_index.shape[0], self.shape.tokens_in
        flat = visual_index.reshape(-1)
        tokens = hidden[0].index_select(0, flat).reshape(images, count, hidden.shape[-1])
        scores = None if row is None else row.index_select(0, flat).reshape(images, count)
        reduced, places = self.selector(tokens, scores)
        origin = visual_index.gather(1, places).reshape(-1)
        rows = torch.cat((hidden[0], reduced.reshape(-1, hidden.shape[-1])), dim=0)
        positions = torch.cat((position_ids[0], position_ids[0].index_select(0, origin)), dim=0)
        return rows.index_select(0, order)[None], positions.index_select(0, order)[None]

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needed = self.selector.needs_scores
        row = last_row_attention(query, key, self.shape.scale) if needed else None
        return self.reduce(hidden, row, position_ids, visual_index, order)
