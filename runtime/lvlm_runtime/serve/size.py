"""How large a request is: what decides on its time and on the memory of its caches."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.cost.request import kv_elements, prefill_works, total
from lvlm_profiles.shapes.dims import TokenPath
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.bundle.token_path import token_path
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.request import layouts_for


@dataclass(frozen=True)
class AskedSize:
    """Of one request.

    Attributes:
        images: Pictures.
        text_tokens: Tokens of the prompt beside them.
        answer_tokens: Longest answer.
    """

    images: int
    text_tokens: int
    answer_tokens: int

    def path(self, bundle: Bundle, ratio: float) -> TokenPath:
        """Its tokens at every place of the chain."""
        manifest, budget = bundle.manifest, bundle.budget(ratio)
        layout = _largest(manifest, self.images) or manifest.layouts[0]
        part = budget.layout(layout.name)
        return token_path(manifest, budget, part, self.text_tokens, self.answer_tokens, self.images)

    def flops(self, bundle: Bundle, ratio: float) -> float:
        """Operations up to the first token."""
        return float(total(prefill_works(bundle.manifest.dims, self.path(bundle, ratio))).flops)

    def kv_bytes(self, bundle: Bundle, ratio: float) -> int:
        """Of its caches, prompt and answer."""
        elements = kv_elements(bundle.manifest.dims, self.path(bundle, ratio))
        return elements * numpy_dtype(bundle.manifest.precision).itemsize

    def positions(self, bundle: Bundle, ratio: float) -> int:
        """RoPE positions of prompt and answer; an image keeps those that it has unreduced."""
        layout = _largest(bundle.manifest, self.images)
        visual = (
            0 if layout is None else self.images * bundle.budget(ratio).layout(layout.name).span
        )
        return self.text_tokens + visual + self.answer_tokens


def _largest(manifest: Manifest, images: int) -> TileLayout | None:
    """The layout of most views that so many images may have; None without images."""
    return max(layouts_for(manifest, images), key=lambda layout: layout.tiles, default=None)
