"""Qwen2-VL: LayerNorm and a plain MLP in the tower, whose layers attend to the whole picture.

What both families share is in ``families/shared/qwen_vl.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_export.families.shared.qwen_vl import QwenVl

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Qwen2Vl(QwenVl):
    """See ``QwenVl``."""

    summary = "Qwen2-VL: tower with 2-D RoPE, merger of 2 x 2 patches, Qwen2 with M-RoPE"

    def tower(self, config: PretrainedConfig) -> tuple[int, int, int]:
        vision = config.vision_config
        return vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), 0

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration


FAMILY = Qwen2Vl()
