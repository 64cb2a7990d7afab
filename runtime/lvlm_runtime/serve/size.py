"""How large a request is: what decides on its time and on the memory of its caches."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.cost.request import kv_elements, prefill_works, total
from lvlm_profiles.shapes.dims import TokenPath
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.element_types import numpy_dtype
from lvlm_runtime.bundle.token_path import token_path


@dataclass(frozen=True)
class AskedSize:
    """Of one request.

    Attributes:
        images: Pictures.
        text_tokens: Tokens of the prompt beside them.
        answer_tokens: Longest answer.
        layout: Name of the tile layout that its pictures take; None without any.
    """

    images: int
    text_tokens: int
    answer_tokens: int
    layout: str | None

    def path(self, bundle: Bundle, ratio: float) -> TokenPath:
        """Its tokens at every place of the chain."""
        manifest, budget = bundle.manifest, bundle.budget(ratio)
        part = budget.layout(self.layout or manifest.layouts[0].name)
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
        span = 0 if self.layout is None else bundle.budget(ratio).layout(self.layout).span
        visual = self.images * span
        return self.text_tokens + visual + self.answer_tokens
