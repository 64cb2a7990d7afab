"""What reducers need to know, taken from eager Hugging Face modules.

The exported graphs compute scores from query and key; here they come from the attention weights
and projections that the modules themselves return, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_export.reduction.reducers import DecoderReducer, VisionReducer
from lvlm_export.reduction.selectors import Clues
from lvlm_export.reduction.tensors import join_groups


@dataclass
class Projections:
    """Outputs ``[B, T, C]`` of an attention module's projections, heads side by side."""

    seen: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watch_projections(attention: Any) -> Iterator[Projections]:
    """Collect what ``q_proj`` and ``k_proj`` give inside the block."""
    result = Projections()
    handles = []
    for name in ("q_proj", "k_proj"):

        def keep(_module: Any, _inputs: Any, output: Tensor, name: str = name) -> None:
            result.seen[name] = output

        handles.append(getattr(attention, name).register_forward_hook(keep))
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()


def vision_clues(
    reducer: VisionReducer,
    hidden: Tensor,
    weights: Tensor,
    projections: Projections,
    heads: int,
    sizes: Tensor,
    origins: Tensor,
    bias: Tensor | None = None,
) -> Clues:
    """Clues of a site in the vision encoder.

    Args:
        reducer: Whose clues.
        hidden: ``[B, P+N, G*C]`` at the site.
        weights: Attention ``[B, H, P+N*G, P+N*G]`` of the layer that scores.
        projections: Of that layer.
        heads: H.
        sizes: ``[B, P+N]``, how many patches each token stands for.
        origins: ``[B, N]``, where in the tile's patches each stood.
        bias: ``[B, 1, T, T]``, what its attention adds to scores because of windows.
    """
    prefix, needs, kind = reducer.shape.prefix, reducer.selector.needs, reducer.selector.attention
    weights = weights.float()
    query, key = projections.seen["q_proj"].float(), projections.seen["k_proj"].float()
    if kind == "fused":
        products = (query @ key.mT / query.shape[-1] ** 0.5).unsqueeze(1)
        weights = torch.softmax(products if bias is None else products + bias, dim=-1)
    scores = None
    if kind is not None:
        mean = weights.mean(dim=1)
        row = prefix and kind in ("salience", "fused")
        scores = (mean[:, 0] if row else mean.mean(dim=1))[:, prefix:]
        # Of a group of patches that is a token, the mean.
        scores = scores.reshape(len(scores), -1, reducer.shape.group).mean(dim=2)
    keys = key[:, prefix:]
    per_head = keys.reshape(*keys.shape[:2], heads, -1).mean(dim=2)
    # Each patch of a group is compared with the CLS token.
    width = hidden.shape[-1] // reducer.shape.group
    cls = torch.cat([hidden[:, 0, :width]] * reducer.shape.group, dim=-1)
    side_by_side = [join_groups(each, reducer.shape.group) for each in (keys, per_head)]
    return Clues(
        scores=scores,
        keys=side_by_side[0] if "keys" in needs else None,
        mean_keys=side_by_side[1] if "mean_keys" in needs else None,
        cls=cls if "cls" in needs else None,
        sizes=sizes[:, prefix:] if "sizes" in needs else None,
        origins=origins if "origins" in needs else None,
    )


def decoder_clues(
    reducer: DecoderReducer,
    hidden: Tensor,
    weights: Tensor,
    keys: Tensor,
    visual: Tensor,
    text: Tensor,
) -> Clues:
    """Clues of a decoder site.

    Args:
        reducer: Whose clues.
        hidden: ``[1, S, C]`` at the site.
        weights: Attention ``[1, H, S, S]`` of the layer before.
        keys: ``[1, Hkv, S, D]``, that layer's cache.
        visual: ``[n, V]``, where the images' tokens stand.
        text: ``[T]``, where the text stands.
    """
    needs = reducer.selector.needs
    mean = weights.float().mean(dim=1)[0]
    rows = keys[0].transpose(0, 1).flatten(1)
    scored = reducer.selector.attention is not None
    return Clues(
        scores=mean[-1][visual] if scored else None,
        keys=rows[visual] if "keys" in needs else None,
        text=hidden[0][text] if needs & {"text", "text_keys", "text_attention"} else None,
        text_keys=rows[text] if "text_keys" in needs else None,
        text_after=text[None] > visual.amax(dim=1, keepdim=True) if reducer.needs_after else None,
        text_attention=mean[text][:, visual].transpose(0, 1) if "text_attention" in needs else None,
    )


def packed_sizes(packer: nn.Module, features: Tensor, sizes: Tensor) -> Tensor:
    """Sizes ``[n, V]`` of a packer's tokens from those of its features, ``[tiles, K]``.

    A packer is linear in its features but for newlines: sizes in their place, less nothing in their
    place, are the sizes, and 0 where it put a newline, which is one token.
    """
    alike = sizes.unsqueeze(-1).expand(-1, -1, features.shape[-1])
    rows: Tensor = (packer(alike) - packer(torch.zeros_like(alike)))[..., 0]
    return torch.where(rows == 0, 1.0, rows)
