"""Settings that transformers' image processors have where a checkpoint's file does not say them.

Source: transformers 5.23, class attributes in ``image_processing_pil_*.py``.
"""

from __future__ import annotations

from typing import Any

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "do_pad": False,
    "default_to_square": False,
    "image_grid_pinpoints": None,
}
_CLIP = {
    **_COMMON,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_SIGLIP_HALF = (0.5, 0.5, 0.5)

DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "Siglip": {
        **_COMMON,
        "size": {"height": 224, "width": 224},
        "image_mean": _SIGLIP_HALF,
        "image_std": _SIGLIP_HALF,
    },
    "Llava": _CLIP,
    "LlavaOnevision": {
        **_COMMON,
        "size": {"height": 384, "width": 384},
        "do_pad": True,
        "image_grid_pinpoints": [
            [384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)
        ],
    },
    "Gemma3": {
        **_COMMON,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "default_to_square": True,
        "image_mean": _SIGLIP_HALF,
        "image_std": _SIGLIP_HALF,
    },
    "LlavaNext": {
        **_COMMON,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_pad": True,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "GotOcr2": {
        **_COMMON,
        "size": {"height": 384, "width": 384},
        # InternVL's processor cuts pictures into tiles whatever this says.
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
    },
    # Its size follows the picture's and is given to it by the family.
    "Qwen2VL": {**_COMMON, "size": {"height": 448, "width": 448}},
}
"""Defaults of each of transformers' processors, for settings that are not in its file."""

# They name the class, the container or the device, or hold for inputs other than RGB pictures.
WITHOUT_EFFECT = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "backend",
    "data_format",
    "input_data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "do_convert_rgb",
    "image_seq_length",
    "_valid_processor_keys",
    # LLaVA-NeXT's files say "anyres"; no processor reads it.
    "aspect_ratio_setting",
}
