"""Qwen2.5-VL: RMSNorm and SwiGLU in the tower, whose layers attend inside windows but for a few.

What both families share is in ``families/shared/qwen_vl.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lvlm_export.families.shared.qwen_vl import QwenVl

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Qwen25Vl(QwenVl):
    """See ``QwenVl``."""

    summary = "Qwen2.5-VL: windowed tower with RMSNorm, merger of 2 x 2 patches, Qwen2 with M-RoPE"

    def tower(self, config: PretrainedConfig) -> tuple[int, int, int]:
        vision = config.vision_config
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
        # Three linear maps and not two.
        return vision.hidden_size, vision.intermediate_size * 3 // 2, window

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration


FAMILY = Qwen25Vl()
