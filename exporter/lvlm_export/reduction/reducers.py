"""Reducers: a selector at a site, with constant K and no weight of its own.

Each computes the clues that its selector needs and nothing else, and returns beside the tokens the
places they came from (``places``), for pictures of what was kept.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lvlm_export.reduction.method import ReducerShape
from lvlm_export.reduction.selectors import Clues, Selector
from lvlm_export.reduction.tensors import (
    fuse_heads,
    last_row_attention,
    received_attention,
    salience,
    text_rows_attention,
)

TEXT_CLUES = frozenset({"text", "text_keys", "text_attention", "text_after", "decoder_input"})


class PixelReducer(nn.Module):
    """A selector on the tiles themselves.

    Inputs: ``pixel_values [B, 3, H, H]``. Outputs: ``pixel_values_out [B, 3, h, h]``, and
    ``places [B, K]`` of the patches that it has.
    """

    inputs = ("pixel_values",)
    outputs = ("pixel_values_out", "places")

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        smaller: tuple[Tensor, Tensor] = self.selector(pixel_values, Clues())
        return smaller


class VisionReducer(nn.Module):
    """A selector in the vision encoder; prefix tokens (CLS) are not scored or touched.

    Inputs: ``hidden [B, P+N, C]``, ``query``, ``key`` ``[B, H, P+N, D]`` of the layer and, where
    the selector needs them, ``sizes [B, P+N]``, how many patches each token stands for, and
    ``origins [B, N]``, where in the tile's patches each stood. Outputs: ``hidden_out [B, P+K, C]``,
    ``places [B, K]``, ``sizes_out [B, P+K]`` and ``origins_out [B, K]``.
    """

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector
        sized = "sizes" in selector.needs
        located = "origins" in selector.needs
        travels = ["sizes"] * sized + ["origins"] * located
        self.inputs = ("hidden", "query", "key", *travels)
        gives = ["sizes_out"] * sized + ["origins_out"] * selector.gives_origins
        self.outputs = ("hidden_out", "places", *gives)

    def patches(self, rows: Tensor) -> Tensor:
        """Rows ``[B, P+N, …]`` without the prefix."""
        return rows.narrow(1, self.shape.prefix, self.shape.tokens_in)

    def reduce(self, hidden: Tensor, clues: Clues) -> tuple[Tensor, ...]:
        """As ``forward`` with the clues given instead of query and key."""
        kept, places, *others = self.selector(self.patches(hidden), clues)
        prefix = self.shape.prefix
        if prefix:
            kept = torch.cat((hidden.narrow(1, 0, prefix), kept), dim=1)
            # A CLS token stands for itself.
            sizes = [nn.functional.pad(each, (prefix, 0), value=1.0) for each in others[:1]]
            others = [*sizes, *others[1:]]
        return kept, places, *others

    def scores(self, query: Tensor, key: Tensor) -> Tensor | None:
        """``[B, P+N]`` of the kind that the selector needs."""
        kind, shape = self.selector.attention, self.shape
        if kind == "received":
            return received_attention(query, key, shape.scale)
        if kind == "salience":
            return salience(query, key, shape.scale, shape.prefix)
        if kind == "fused":
            whole = fuse_heads(query).unsqueeze(1), fuse_heads(key).unsqueeze(1)
            return salience(*whole, whole[0].shape[-1] ** -0.5, shape.prefix)
        assert kind is None, f"{kind} is no attention of a vision site"
        return None

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        sizes: Tensor | None = None,
        origins: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        needs, scores = self.selector.needs, self.scores(query, key)
        clues = Clues(
            scores=None if scores is None else self.patches(scores),
            keys=self.patches(fuse_heads(key)) if "keys" in needs else None,
            mean_keys=self.patches(key.float().mean(dim=1)) if "mean_keys" in needs else None,
            cls=hidden[:, 0] if "cls" in needs else None,
            sizes=None if sizes is None else self.patches(sizes),
            origins=origins,
        )
        return self.reduce(hidden, clues)


class ProjectedReducer(nn.Module):
    """A selector on the tokens of each image as they would enter the decoder.

    Inputs: ``visual [n, V, C]`` and, where the selector needs it, ``text [1, T, C]``, the
    embeddings of the prompt's text. Outputs: ``visual_out [n, K, C]``, ``places [n, K]``.
    """

    outputs = ("visual_out", "places")

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        assert selector.attention is None, "before the decoder there is no attention"
        self.shape = shape
        self.selector = selector
        self.inputs = ("visual", "text") if "text" in selector.needs else ("visual",)

    def forward(self, visual: Tensor, text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept: tuple[Tensor, Tensor] = self.selector(
            visual, Clues(text=None if text is None else text[0])
        )
        return kept


class DecoderReducer(nn.Module):
    """A selector at the input of a decoder layer; text is never touched, positions are kept.

    Several images reduce independently, each from V to K tokens. The host knows the position of
    every token, so the new order is an input and no sort over the sequence is needed.

    Inputs:
        hidden: ``[1, S, C]`` at the input of the site's layer.
        query: ``[1, H, S, D]`` after RoPE, of the layer before.
        key: ``[1, Hkv, C, D]``, that layer's cache, first S rows filled.
        position_ids: ``[1, S]`` int64.
        visual_index: ``[n, V]`` int64, where each image's tokens stand in S.
        order: ``[S']`` int64 into the S old rows followed by the n*K reduced ones.
        text_index: ``[T]`` int64, where the text stands, if the selector needs text.
        text_embeds: ``[1, T, C]``, the text as it entered the decoder, if the selector needs it.
        visual_embeds: ``[n, V0, C]``, the images' tokens as they entered it, if it needs them.

    Outputs:
        ``hidden_out [1, S', C]``, ``position_ids_out [1, S']`` and, where K > 0,
        ``places [n, K]``.
    """

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__()
        self.shape = shape
        self.selector = selector
        base = ("hidden", "query", "key", "position_ids", "visual_index", "order")
        text = ("text_index",) if selector.needs & TEXT_CLUES else ()
        entered = ("text_embeds", "visual_embeds") if "decoder_input" in selector.needs else ()
        self.inputs: tuple[str, ...] = (*base, *text, *entered)
        self.outputs = ("hidden_out", "position_ids_out", *(["places"] if shape.tokens_out else []))

    def reduce(
        self,
        hidden: Tensor,
        clues: Clues,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
    ) -> tuple[Tensor, ...]:
        """As ``forward`` with the clues given instead of query and key."""
        if self.shape.tokens_out == 0:
            return hidden.index_select(1, order), position_ids.index_select(1, order)
        reduced, places = self.selector(self.visual(hidden[0], visual_index), clues)
        origin = visual_index.gather(1, places).reshape(-1)
        rows = torch.cat((hidden[0], reduced.reshape(-1, hidden.shape[-1])), dim=0)
        positions = torch.cat((position_ids[0], position_ids[0].index_select(0, origin)), dim=0)
        return rows.index_select(0, order)[None], positions.index_select(0, order)[None], places

    @property
    def needs_after(self) -> bool:
        """The selector asks which text stands after an image."""
        return bool(self.selector.needs & {"text_after", "decoder_input"})

    def visual(self, rows: Tensor, visual_index: Tensor) -> Tensor:
        """Rows ``[S, …]`` of each image's tokens: ``[n, V, …]``."""
        picked = rows.index_select(0, visual_index.reshape(-1))
        return picked.reshape(visual_index.shape[0], self.shape.tokens_in, *rows.shape[1:])

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
        text_index: Tensor | None = None,
        text_embeds: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        clues = self.clues(hidden, query, key, visual_index, text_index, bias)
        if text_index is not None and self.needs_after:
            clues = replace(clues, text_after=text_after(visual_index, text_index))
        if text_embeds is not None:
            clues = replace(clues, text_embeds=text_embeds[0], visual_embeds=visual_embeds)
        return self.reduce(hidden, clues, position_ids, visual_index, order)

    def clues(
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        visual_index: Tensor,
        text_index: Tensor | None,
        bias: Tensor | None,
    ) -> Clues:
        """What the selector needs, from query and cache; ``bias [S]`` is added to scores."""
        selector, scale = self.selector, self.shape.scale
        scores = keys = text = text_keys = text_attention = None
        if selector.attention is not None:
            assert selector.attention == "last_row"
            scores = self.visual(last_row_attention(query, key, scale, bias), visual_index)
        if selector.needs & {"keys", "text_keys"}:
            filled = fuse_heads(key.narrow(2, 0, query.shape[2]))[0]
            keys = self.visual(filled, visual_index)
        if text_index is not None:
            text = hidden[0].index_select(0, text_index)
        if "text_keys" in selector.needs:
            assert text_index is not None
            text_keys = filled.index_select(0, text_index)
        if "text_attention" in selector.needs:
            assert text_index is not None
            rows = text_rows_attention(query, key, scale, text_index, bias)
            text_attention = self.visual(rows.transpose(0, 1), visual_index).transpose(1, 2)
        return Clues(
            scores=scores,
            keys=keys,
            text=text,
            text_keys=text_keys,
            text_attention=text_attention,
        )


class SizedDecoderReducer(DecoderReducer):
    """As ``DecoderReducer``, whose scores are attention of a decoder that counts sizes.

    It takes ``size_bias [1, C]``, what attention adds for every row of the cache, after ``order``.
    """

    def __init__(self, shape: ReducerShape, selector: Selector) -> None:
        super().__init__(shape, selector)
        self.inputs = (*self.inputs[:6], "size_bias", *self.inputs[6:])

    @staticmethod
    def suits(selector: Selector) -> bool:
        """A selector asks for attention."""
        return selector.attention is not None or "text_attention" in selector.needs

    def forward(  # type: ignore[override]  # one input more, in the order of the graph's
        self,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        position_ids: Tensor,
        visual_index: Tensor,
        order: Tensor,
        size_bias: Tensor,
        *text: Tensor,
    ) -> tuple[Tensor, ...]:
        named = dict(zip(("text_index", "text_embeds", "visual_embeds"), text, strict=False))
        named["bias"] = size_bias[0].narrow(0, 0, query.shape[2])
        rows = (hidden, query, key, position_ids, visual_index, order)
        return super().forward(*rows, **named)


def text_after(visual_index: Tensor, text_index: Tensor) -> Tensor:
    """``[n, T]`` bool, the text rows that stand after each image."""
    return text_index.unsqueeze(0) > visual_index[:, -1:]
